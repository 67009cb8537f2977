"""The length policy keeps whole exchanges only."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_qwenvl.transforms.chat.truncation import exchange_starts, turns_that_fit
from torchtune_qwenvl.transforms.errors import SampleTooLong

ROLES = ["system", "user", "assistant", "ipython", "assistant", "user", "assistant", "user"]


def test_exchanges_begin_with_a_question():
    assert exchange_starts(ROLES) == [0, 5, 7]
    assert exchange_starts(["user", "user", "assistant", "system", "user", "assistant"]) == [0, 3]
    assert exchange_starts(["user", "assistant", "ipython", "user", "assistant"]) == [0, 3]


@pytest.mark.parametrize("limit, kept", [(None, 8), (80, 8), (79, 7), (70, 7), (69, 5), (50, 5)])
def test_trailing_exchanges_go(limit, kept):
    assert turns_that_fit(ROLES, [10] * 8, limit, "drop_turns") == kept


def test_what_cannot_be_shortened_is_given_up():
    with pytest.raises(SampleTooLong, match="has 80 tokens, its first exchange alone 50, max_seq_len is 49"):
        turns_that_fit(ROLES, [10] * 8, 49, "drop_turns")
    with pytest.raises(SampleTooLong, match=r"has 80 tokens, max_seq_len is 79 \(raise max_seq_len"):
        turns_that_fit(ROLES, [10] * 8, 79, "drop")


turns = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant", "ipython"]), st.integers(1, 50)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(turns, st.integers(1, 300))
def test_the_longest_prefix_of_whole_exchanges(conversation, limit):
    roles, lengths = zip(*conversation, strict=True)
    ends = [*exchange_starts(roles)[1:], len(roles)]
    fitting = [end for end in ends if sum(lengths[:end]) <= limit]
    if not fitting:
        with pytest.raises(SampleTooLong):
            turns_that_fit(roles, lengths, limit, "drop_turns")
        return
    assert turns_that_fit(roles, lengths, limit, "drop_turns") == max(fitting)
    # No exchange is split: what is dropped starts with a question that follows an answer.
    kept = max(fitting)
    assert kept == len(roles) or (roles[kept] in ("system", "user") and "assistant" in roles[:kept])
