"""The lists of bad and skipped samples: readable headings, and an example of each kind."""

import pytest
import torch

from torchtune_qwenvl.checking import Facts, summary
from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.reasons import by_kind, masked, skipped_lines
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.watch.tally import Tally

ADVICE = "(raise max_seq_len, or lower max_pixels (for videos video_total_pixels))"


def too_long(number: int, tokens: int) -> str:
    place = f"a/b.jsonl, sample {number} (from 0; line {number + 1})"
    return f"{place}: the sample has {tokens} tokens, max_seq_len is 20 {ADVICE}"


def test_kinds_of_skipped_samples_have_an_example() -> None:
    other = "photos, image 3: 0 bytes"
    skipped = {too_long(1, 30): 1, other: 1, too_long(4, 9000): 2}
    assert skipped_lines(by_kind(skipped)) == [
        f"skipped 3 samples: the sample has … tokens, max_seq_len is …; such as {too_long(1, 30)}",
        f"skipped 1 sample: {other}",
    ]
    last = Tally().lines(1, skipped, World(torch.device("cpu")), {"empty_steps": 1}, {})
    assert last[0].startswith("finished 1 step in 0:00:00; 0 samples, 0 tokens; 1 empty step")
    assert last[1:] == skipped_lines(by_kind(skipped))


PLACES = ["x.jsonl, line 7", "dataset a b, sample 3 (from 0)", "sample 1 (from 0) of the dataset"]


@pytest.mark.parametrize("place", PLACES)
def test_places_are_no_part_of_a_kind(place: str) -> None:
    reason = f"{place}: 2 boxes, but 3 <bbox> tags (put one)"
    assert list(by_kind({reason: 1})) == ["… boxes, but … <bbox> tags"]


def test_a_kind_of_one_sample_is_that_sample() -> None:
    said = ("objects: 2 boxes, but 3 tags", "objects: 1 boxes, but 4 tags", "0 bytes")
    facts = [Facts(i, f"d, sample {i}", kind=masked(reason), reason=reason) for i, reason in enumerate(said)]
    assert summary([Facts(3, "d", tokens=3, kept_tokens=3)]).startswith("1 sample: 1 good, 0 bad\n")
    assert summary(facts).split("\n")[2:] == [
        "bad samples, 2 kinds",
        "",
        "     2  objects: … boxes, but … tags",
        "        d, sample 0: objects: 2 boxes, but 3 tags",
        "        d, sample 1: objects: 1 boxes, but 4 tags",
        "",
        "     1  d, sample 2: 0 bytes",
    ]


def test_one_is_no_plural() -> None:
    assert [counted(n, "step") for n in (0, 1, 1200)] == ["0 steps", "1 step", "1,200 steps"]
    assert [counted(n, "batch", "batches") for n in (1, 2)] == ["1 batch", "2 batches"]
