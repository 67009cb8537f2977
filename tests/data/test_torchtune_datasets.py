"""torchtune's own multimodal datasets with our transform and collate, on local data."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
from torch.utils.data import Dataset
from torchtune.datasets import ConcatDataset
from torchtune.datasets.multimodal import (
    llava_instruct_dataset,
    multimodal_chat_dataset,
    the_cauldron_dataset,
    vqa_dataset,
)

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import ResumableSampler, build_loader, collate, vision_chat_dataset

TURNS = [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture(scope="module")
def transform(tiny_folder: Path) -> Any:
    return load_transform(tiny_folder, dtype="uint8", max_pixels=112 * 112)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a.png and b.png, chat.json, vqa.json, and cauldron/ with orcvqa as parquet."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for seed, name in enumerate(("a.png", "b.png")):
        tiny.photo(60, 90, seed=seed).save(tmp_path / name)
    chat = [{"conversations": TURNS, "image": name} for name in ("a.png", "b.png")]
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    rows = [{"input": "What is it?", "output": "A cat.", "image": str(tmp_path / "a.png")}]
    (tmp_path / "vqa.json").write_text(json.dumps(rows))
    return tmp_path


def chat(transform: Any, folder: Path) -> Dataset:
    return multimodal_chat_dataset(
        transform,
        source="json",
        data_files=str(folder / "chat.json"),
        column_map={"conversations": "conversations", "image": "image"},
        image_dir=str(folder),
        image_tag="<image>",
    )


def llava(transform: Any, folder: Path) -> Dataset:
    return llava_instruct_dataset(
        transform, source="json", data_files=str(folder / "chat.json"), image_dir=str(folder)
    )


def vqa(transform: Any, folder: Path) -> Dataset:
    return vqa_dataset(transform, source="json", data_files=str(folder / "vqa.json"))


def cauldron(transform: Any, folder: Path) -> Dataset:
    """Its `subset` is the name of a configuration, here a cache name of the parquet builder."""
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "texts": datasets.List({"user": datasets.Value("string"), "assistant": datasets.Value("string")}),
        }
    )
    row = {
        "images": [str(folder / "a.png")],
        "texts": [{"user": "What is it?", "assistant": "A cat."}],
    }
    datasets.Dataset.from_list([row], features=features).to_parquet(str(folder / "x.parquet"))
    return the_cauldron_dataset(transform, source="parquet", data_files=str(folder / "x.parquet"))


@pytest.mark.parametrize("build", [chat, llava, vqa, cauldron])
def test_gives_the_sample_of_our_own_dataset(build: Any, transform: Any, folder: Path) -> None:
    dataset = build(transform, folder)
    ours = vision_chat_dataset(transform, source=folder / "chat.json")
    batch, expected = (
        collate([source[0]], padding_idx=transform.pad_id, ignore_idx=-100) for source in (dataset, ours)
    )
    for key in ("tokens", "labels", "input_pos"):
        assert batch[key].tolist() == expected[key].tolist()
    for key in ("pixel_values", "grid_thw"):
        vision, expected_vision = (b["encoder_input"]["vision"][key] for b in (batch, expected))
        assert vision.tolist() == expected_vision.tolist() and vision.numel()


def test_concatenated_and_loaded_by_workers(transform: Any, folder: Path) -> None:
    """torchtune's ConcatDataset of theirs and ours; a missing image in theirs is skipped and counted."""
    data = json.loads((folder / "chat.json").read_text())
    data[1]["image"] = "missing.png"
    (folder / "broken.json").write_text(json.dumps(data))
    theirs = llava_instruct_dataset(
        transform, source="json", data_files=str(folder / "broken.json"), image_dir=str(folder)
    )
    ours = vision_chat_dataset(transform, source=folder / "broken.json", on_bad_sample="skip")
    loader = build_loader(
        ConcatDataset([theirs, ours]),
        batch_size=2,
        sampler=ResumableSampler(4, shuffle=False),
        padding_idx=transform.pad_id,
        on_bad_sample="skip",
        num_workers=2,
    )
    assert [batch.samples for batch in loader] == [1, 1]
    assert [batch.skipped[0].index for batch in loader] == [1, 1]
    in_theirs, in_ours = loader.skipped
    assert in_theirs.startswith("sample 1 (from 0) of the dataset: Failed to open image as PIL Image")
    assert in_ours.startswith(f"{folder / 'broken.json'}, sample 1 (from 0; line 1): expected an image file")
