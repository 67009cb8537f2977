"""Which turns of a conversation fit into `max_seq_len`: only whole exchanges are kept.

An exchange is a user's turn (with the system turn before it) and all answers and tool results up to the next
user's turn. An image belongs to its turn, so none is ever cut. Only lengths are needed, and image headers
give these, so no image is decoded and then discarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

from torchtune_qwenvl.transforms.errors import SampleTooLong

Policy = Literal["drop_turns", "drop"]


def exchange_starts(roles: Sequence[str]) -> list[int]:
    """Index of the first turn of every exchange: a system or user turn that follows an answer."""
    starts, answered = [0], False
    for i, role in enumerate(roles):
        if role in ("system", "user") and answered:
            starts.append(i)
            answered = False
        answered |= role == "assistant"
    return starts


def turns_that_fit(
    roles: Sequence[str], lengths: Sequence[int], max_seq_len: int | None, policy: Policy
) -> int:
    """How many leading turns to keep.

    Args:
        roles: role of every turn.
        lengths: tokens of every turn.
        max_seq_len: None keeps everything.
        policy: "drop_turns" drops trailing exchanges; "drop" drops the whole sample.

    Raises:
        SampleTooLong: the sample (with "drop_turns": its first exchange) is longer than `max_seq_len`.
    """
    total = sum(lengths)
    if max_seq_len is None or total <= max_seq_len:
        return len(roles)
    ends = [*exchange_starts(roles)[1:], len(roles)]
    ended_at = list(accumulate(lengths))
    fitting = [end for end in ends if ended_at[end - 1] <= max_seq_len]
    if policy == "drop_turns" and fitting:
        return fitting[-1]
    first = ended_at[ends[0] - 1]
    which = f", its first exchange alone {first}" if policy == "drop_turns" and len(ends) > 1 else ""
    raise SampleTooLong(
        f"the sample has {total} tokens{which}, max_seq_len is {max_seq_len}",
        fix="raise max_seq_len, or lower max_pixels (for videos video_total_pixels)",
    )
