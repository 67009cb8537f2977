"""Any dataset as `Samples`: a foreign one's own answers are used, all others have a default."""

import pickle
from typing import Any

import pytest
from torch.utils.data import ConcatDataset, Dataset

from torchtune_qwenvl.data import Guarded, Samples
from torchtune_qwenvl.data.joined import Joined
from torchtune_qwenvl.data.samples import as_samples
from torchtune_qwenvl.transforms.errors import BadSample, SampleTooLong, locate
from torchtune_qwenvl.transforms.size import SampleSize


class Plain(Dataset):
    """Has neither methods of its own nor, in sample 1, a sample."""

    size = 7  # an attribute, as others' datasets may have one: not ours to call

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index:
            raise OSError("no such image")
        return {"tokens": [1, 2, 3]}


class Speaking(Plain):
    """Answers by methods of the names that are documented, without inheriting from us."""

    def where(self, index: int) -> str:
        return f"shelf 3, sample {index}"

    def size(self, index: int) -> tuple[int, int]:  # type: ignore[override]
        return (5, 8)

    def fingerprint(self) -> str:
        return "shelf 3"


def test_a_foreign_dataset_is_wrapped_once() -> None:
    plain = as_samples(Plain())
    assert isinstance(plain, Samples) and as_samples(plain) is plain and len(plain) == 2
    assert plain.where(1) == "sample 1 (from 0) of the dataset" and plain.fingerprint() is None
    assert plain.size(0) == SampleSize(3, 0) and plain.member(0) == 0 and plain.check(0, plain[0]) is None
    assert as_samples(Plain(), "charts").where(1) == "dataset charts, sample 1 (from 0)"


def test_its_own_answers_count() -> None:
    speaking = as_samples(Speaking())
    assert speaking.where(1) == "shelf 3, sample 1" and speaking.fingerprint() == "shelf 3"
    assert speaking.size(1) == SampleSize(5, 8) and speaking.size(1).patches == 8
    joined = as_samples(ConcatDataset([Speaking(), Plain()]))
    assert joined.size(1) == SampleSize(5, 8) and joined.size(2) == SampleSize(3, 0)
    assert joined.fingerprint() is None and as_samples(ConcatDataset([Speaking()])).fingerprint()


def test_numbers_are_counted_through() -> None:
    joined = Joined([3, 0, 2])
    assert len(joined) == 5 and [joined.find(n).part for n in range(5)] == [0, 0, 0, 2, 2]
    assert [joined.find(n).index for n in range(5)] == [0, 1, 2, 0, 1]


def test_an_error_is_located_once_and_survives_pickling() -> None:
    """Through three guards, and to another process."""
    error = BadSample("no image", where="message 2", fix="add it")
    located = locate(error, lambda: "data.json, sample 3")
    assert str(located) == "data.json, sample 3: message 2: no image (add it)" and located.what == "no image"
    assert locate(located, lambda: "elsewhere") is located
    for again in (pickle.loads(pickle.dumps(located)), located.at("file")):
        assert again.located and again.what == "no image"
    assert isinstance(locate(SampleTooLong("long"), lambda: "x"), SampleTooLong)
    with pytest.raises(BadSample, match=r"^sample 1 \(from 0\) of the dataset: no such image$") as caught:
        Guarded(Guarded(Guarded(Plain())))[1]
    assert isinstance(caught.value.__cause__, OSError)
