"""Lengths are measured once, anew when what they follow from has changed, and never wrong unnoticed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch.utils.data import ConcatDataset, Dataset

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import PackedSampler, build_loader, measure, mixed_dataset, vision_chat_dataset
from torchtune_qwenvl.data.length_cache import measure_once
from torchtune_qwenvl.data.samples import as_samples
from torchtune_qwenvl.transforms.errors import BadSample


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Path) -> Path:
    tiny.photo(60, 90).save(tmp_path / "a.png")
    rows = [
        {"question": "What?", "answer": "yes " * i, **({"image": "a.png"} if i % 2 else {})}
        for i in range(1, 7)
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture(scope="module")
def transform(tiny_folder: Path) -> Any:
    return load_transform(tiny_folder, dtype="uint8")


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "lengths").glob("*"))


def test_measured_once(folder: Path, transform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = vision_chat_dataset(transform, source=str(folder / "data.json"))
    dataset, sizes = measure_once(data, folder / "lengths")
    assert dataset is data and sizes.equal(measure(data)) and len(kept(folder)) == 1
    monkeypatch.setattr("torchtune_qwenvl.data.length_cache.measure", None)  # asked no more
    again = vision_chat_dataset(transform, source=str(folder / "data.json"))
    assert measure_once(again, folder / "lengths")[1].equal(sizes)


def test_what_lengths_follow_from_is_in_the_fingerprint(
    folder: Path, transform: Any, tiny_folder: Path
) -> None:
    source = str(folder / "data.json")

    def prints() -> set[str | None]:
        other = load_transform(tiny_folder, dtype="uint8", max_pixels=56 * 56)
        same = load_transform(tiny_folder, dtype="uint8")
        members = mixed_dataset(same, datasets=[{"source": source}]).members
        datasets = [
            vision_chat_dataset(same, source=source),
            vision_chat_dataset(other, source=source),
            vision_chat_dataset(same, source=source, new_system_prompt="Be brief."),
            vision_chat_dataset(same, source=source, split="train[:3]"),
            vision_chat_dataset(same, source=source, split="train[3:]"),
            vision_chat_dataset(same, source=[source, source]),
            members,
        ]
        return {as_samples(dataset).fingerprint() for dataset in datasets}

    before = prints()
    assert len(before) == 7 and None not in before and before == prints()
    status = os.stat(source)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not before & prints()


class Foreign(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict:
        return {"tokens": [1, 2]}


def test_others_are_measured_each_time(folder: Path, transform: Any) -> None:
    ours = vision_chat_dataset(transform, source=str(folder / "data.json"))
    for data in (Foreign(), ConcatDataset([ours, Foreign()])):
        assert as_samples(data).fingerprint() is None
        assert measure_once(data, folder / "lengths")[1].equal(measure(data))
    assert as_samples(ConcatDataset([ours, ours])).fingerprint() is not None
    assert measure_once(ours, None)[0] is ours and not kept(folder)


def test_a_broken_file_is_measured_again(folder: Path, transform: Any) -> None:
    data = vision_chat_dataset(transform, source=str(folder / "data.json"))
    sizes = measure_once(data, folder / "lengths")[1]
    (file,) = kept(folder)
    file.write_bytes(file.read_bytes()[:-3])
    assert measure_once(data, folder / "lengths")[1].equal(sizes)
    assert measure_once(data, folder / "lengths")[0] is not data  # whole again
    assert kept(folder) == [file]


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_an_image_that_changed_stops_the_run(folder: Path, transform: Any, policy: str) -> None:
    def read() -> list[Any]:
        data = vision_chat_dataset(transform, source=str(folder / "data.json"))
        dataset, sizes = measure_once(data, folder / "lengths")
        sampler = PackedSampler(sizes, pack_to=200, shuffle=False)
        return list(build_loader(dataset, batch_size=1, sampler=sampler, on_bad_sample=policy))

    assert sum(batch.samples for batch in read()) == sum(batch.samples for batch in read()) == 6
    tiny.photo(120, 90).save(folder / "a.png")
    message = (
        r"data\.json, sample \d .*: \d+ tokens, but \d+ when lengths were .*Remove .*/lengths/lengths_.*"
    )
    with pytest.raises(BadSample, match=message):
        read()
    kept(folder)[0].unlink()
    assert sum(batch.samples for batch in read()) == 6
