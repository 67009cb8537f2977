"""Lengths before decoding: the same as the samples', no image decoded, bad samples without a length."""

import json
import struct
from pathlib import Path

import pytest
import tiny
import torch
from torch.utils.data import ConcatDataset, Dataset

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import Guarded, SkippedSample, measure, vision_chat_dataset
from torchtune_qwenvl.data.samples import as_samples, sample_size
from torchtune_qwenvl.transforms.size import SampleSize


def row(n_images: int, words: str, exchanges: int = 1) -> dict:
    images = [{"type": "image", "path": f"{i}.png"} for i in range(n_images)]
    user = {"role": "user", "content": [*images, {"type": "text", "text": words}]}
    return {"messages": [user, {"role": "assistant", "content": f"{words}!"}] * exchanges}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, three images, and rows: text, one image, three, too long by one exchange and by all."""
    folder = tmp_path_factory.mktemp("sizes")
    tiny.save_tiny_folder(folder / "checkpoint")
    for i, size in enumerate([(60, 90), (130, 70), (28, 200)]):
        tiny.photo(*size, seed=i).save(folder / f"{i}.png")
    rows = [row(0, "text"), row(1, "one"), row(3, "three"), row(1, "two of three", 5), row(0, "x y z " * 200)]
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


def dataset(folder: Path, source: str = "data.json", **options) -> Guarded:
    transform = load_transform(folder / "checkpoint", dtype="uint8", max_seq_len=150)
    return vision_chat_dataset(transform, source=str(folder / source), **options)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sizes_are_the_samples(folder: Path, num_workers: int) -> None:
    data = dataset(folder, on_too_long="skip")
    sizes = measure(data, num_workers=num_workers).tolist()
    assert [tuple(size) for size in sizes[:4]] == [SampleSize.of(data[i]) for i in range(4)]
    assert data[3]["dropped_turns"] > 0  # what is cut is not counted
    assert isinstance(data[4], SkippedSample) and sizes[4] == [0, 0]


def test_nothing_is_decoded(folder: Path, tmp_path: Path) -> None:
    """A file that ends after its header has a size, but no pixels."""
    whole = (folder / "0.png").read_bytes()
    header = 8 + 8 + struct.unpack(">I", whole[8:12])[0] + 4 + 20
    (tmp_path / "0.png").write_bytes(whole[:header])
    (tmp_path / "data.json").write_text(json.dumps([row(1, "one")]))
    (tmp_path / "checkpoint").symlink_to(folder / "checkpoint")
    data = dataset(tmp_path, on_bad_sample="skip")
    assert isinstance(data[0], SkippedSample)
    assert data.size(0) == dataset(folder).size(1)


def test_bad_samples_have_no_length(folder: Path, tmp_path: Path) -> None:
    rows = [{"messages": []}, row(1, "no such file"), row(0, "good")]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "checkpoint").symlink_to(folder / "checkpoint")
    sizes = measure(dataset(tmp_path)).tolist()
    assert sizes[:2] == [[0, 0], [0, 0]] and sizes[2][0] > 0


class Foreign(Dataset):
    """A dataset that has no sizes of its own, such as torchtune's."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        if index:
            raise OSError("no such image")
        images = [torch.zeros(8, 12), torch.zeros(4, 12)]
        return {"tokens": [1, 2, 3], "encoder_input": {"vision": {"images": images}}}


def test_others_are_read_as_a_whole(folder: Path) -> None:
    ours = dataset(folder)
    joined = as_samples(ConcatDataset([Foreign(), ours, Guarded(Foreign())]))
    sizes = [sample_size(joined, i) for i in range(9)]
    foreign = [SampleSize(3, 12), SampleSize(0, 0)]
    assert sizes == [*foreign, *(ours.size(i) for i in range(5)), *foreign]
