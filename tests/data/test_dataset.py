"""vision_chat_dataset from file to sample, and the message of every kind of bad sample."""

import base64
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.utils.data import ConcatDataset, Dataset
from torchtune import config

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import Guarded, SkippedSample, collate, vision_chat_dataset
from torchtune_qwenvl.data.reported import Reported
from torchtune_qwenvl.transforms.errors import BadSample, SampleTooLong


@pytest.fixture(scope="module")
def transform(tiny_folder: Path) -> Any:
    return load_transform(tiny_folder, dtype="uint8", max_pixels=112 * 112)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs and one file for each way in which an image can be broken."""
    path = tmp_path_factory.mktemp("images")
    tiny.photo(60, 90, seed=1).save(path / "a.jpg")
    tiny.photo(90, 60, seed=2).save(path / "b.png")
    tiny.photo(2, 402).save(path / "thin.png")
    (path / "zero.jpg").touch()
    (path / "text.jpg").write_text("not an image")
    (path / "cut.jpg").write_bytes((path / "a.jpg").read_bytes()[:1200])
    (path / "bomb.png").write_bytes(_png_header(60000, 60000))
    return path


def _png_header(width: int, height: int) -> bytes:
    """A PNG that says it is huge and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def about(*images: str) -> dict[str, Any]:
    """A conversation about image files."""
    parts = [{"type": "image", "path": image} for image in images]
    content = [*parts, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]}


def write(folder: Path, *records: Any) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_three_styles_of_one_conversation_give_one_sample(folder: Path, transform: Any) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    source = write(
        folder,
        about("a.jpg"),
        {"image": "a.jpg", "conversations": turns},
        {"image": "a.jpg", "question": "What is it?", "answer": "A cat."},
        {
            "image": {"path": None, "bytes": None, "url": str(folder / "a.jpg")},
            "question": "What is it?",
            "answer": "A cat.",
        },
        about(f"data:image/jpeg;base64,{base64.b64encode((folder / 'a.jpg').read_bytes()).decode()}"),
    )
    dataset = vision_chat_dataset(transform, source=source)
    samples = [dataset[i] for i in range(len(dataset))]
    text = transform.decode(samples[0]["tokens"], truncate_at_eos=False, skip_special_tokens=False)
    assert "<|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\nA cat." in text
    trained = [token for token in samples[0]["labels"] if token != -100]
    assert transform.decode(trained, truncate_at_eos=False, skip_special_tokens=False) == "A cat.<|im_end|>\n"
    for sample in samples[1:]:
        assert sample["tokens"] == samples[0]["tokens"] and sample["labels"] == samples[0]["labels"]
        image, expected = (s["encoder_input"]["vision"]["images"][0] for s in (sample, samples[0]))
        assert torch.equal(image, expected)
    batch = collate(samples, padding_idx=transform.pad_id)
    assert batch["encoder_input"]["vision"]["grid_thw"].shape == (5, 3)


def test_image_limits_reach_the_transform(folder: Path, transform: Any) -> None:
    record = about("a.jpg")
    record["messages"][0]["content"][0] |= {"resized_height": 56, "resized_width": 168}
    sample = vision_chat_dataset(transform, source=write(folder, record))[0]
    assert sample["encoder_input"]["vision"]["grid_thw"].tolist() == [[1, 4, 12]]


def test_from_yaml_as_the_recipes_do(folder: Path, transform: Any) -> None:
    from omegaconf import OmegaConf

    cfg = OmegaConf.create(
        {
            "_component_": "torchtune_qwenvl.data.vision_chat_dataset",
            "source": "json",
            "data_files": {"train": write(folder, {"q": "q", "a": "a"}), "test": ["no.json"]},
            "column_map": {"question": "q", "answer": "a"},
            "image_root": str(folder),
        }
    )
    assert len(config.instantiate(cfg, transform)[0]["tokens"]) > 4


BAD_FILES = [
    ("missing.jpg", "expected an image file at .*missing.jpg, found nothing.*set image_root"),
    ("zero.jpg", "zero.jpg.*repair or remove the file"),
    ("text.jpg", "text.jpg.*repair or remove the file"),
    ("cut.jpg", "cut.jpg: cannot be decoded.*repair or remove the file"),
    ("bomb.png", "bomb.png.*60000"),
    ("thin.png", "thin.png.*200"),
    ("http://127.0.0.1/a.jpg", "http://127.0.0.1/a.jpg.*allow_urls: true"),
    ("../a.jpg", "leaves image_root"),
]


@pytest.mark.parametrize(("image", "message"), BAD_FILES, ids=[name for name, _ in BAD_FILES])
def test_bad_images_say_file_number_and_remedy(
    folder: Path, transform: Any, image: str, message: str
) -> None:
    source = write(folder, about("b.png"), about("a.jpg", image))
    dataset = vision_chat_dataset(transform, source=source, image_root=folder)
    assert not isinstance(dataset[0], SkippedSample)
    with pytest.raises(BadSample, match=message) as caught:
        dataset[1]
    assert str(caught.value).startswith(f"{source}, sample 1 (from 0; line 2): ")
    skipping = vision_chat_dataset(transform, source=source, image_root=folder, on_bad_sample="skip")
    assert skipping[1] == SkippedSample(1, str(caught.value))


BAD_RECORDS = [
    ({"messages": []}, "an empty conversation.*remove the sample"),
    ({"messages": about()["messages"][:1]}, "expected an assistant turn, got user"),
    ([1], "expected an object with the columns of a sample, got list"),
    (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]},
        "nothing to train on",
    ),
    ({"images": ["a.jpg"], **about("a.jpg")}, r"1 image\(s\), but only 0 image parts"),
]


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS, ids=[m[:30] for _, m in BAD_RECORDS])
def test_bad_records_say_file_and_number(folder: Path, transform: Any, record: Any, message: str) -> None:
    source = write(folder, about(), record)
    with pytest.raises(BadSample, match=message) as caught:
        vision_chat_dataset(transform, source=source)[1]
    assert str(caught.value).startswith(f"{source}, sample 1 (from 0; line 2): ")
    assert isinstance(vision_chat_dataset(transform, source=source, on_bad_sample="skip")[1], SkippedSample)


@pytest.mark.parametrize("on_bad_sample", ["raise", "skip"])
def test_too_long_has_a_policy_of_its_own(folder: Path, tiny_folder: Path, on_bad_sample: str) -> None:
    short, policies = load_transform(tiny_folder, max_seq_len=20), {"on_bad_sample": on_bad_sample}
    source = write(folder, about("a.jpg"))
    with pytest.raises(SampleTooLong, match=r"sample 0 .*max_seq_len is 20 .*or lower max_pixels"):
        vision_chat_dataset(short, source=source, **policies)[0]
    skipped = vision_chat_dataset(short, source=source, on_too_long="skip", **policies)[0]
    assert isinstance(skipped, SkippedSample) and "max_seq_len is 20" in skipped.reason
    assert "on_too_long" not in skipped.reason
    stopping = Reported(vision_chat_dataset(short, source=source, **policies), "skip")[0].outcome
    assert "on_too_long=skip leaves such samples out" in str(stopping)
    stopping = Reported(Listed(BadSample("broken")), "raise")[0].outcome
    assert str(stopping).endswith("broken; on_bad_sample=skip leaves such samples out")
    with pytest.raises(ValueError, match=r"skipped sample reached collate: .*max_seq_len is 20"):
        collate([skipped], padding_idx=0)


class Listed(Dataset):
    """A dataset of ready answers; an exception among them is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> Any:
        answer = self.answers[index]
        if isinstance(answer, Exception):
            raise answer
        return answer


GOOD = {"tokens": [1, 2], "mask": [True, False]}


@pytest.mark.parametrize("make", [BadSample, ValueError, OSError])
def test_other_datasets_are_guarded_too(make: Callable[[str], Exception]) -> None:
    """torchtune's datasets answer a bad record with ValueError and a bad file with OSError."""
    dataset = Listed(GOOD, make("broken"))
    assert Guarded(dataset)[0] is GOOD
    assert Guarded(dataset, "skip")[1] == SkippedSample(1, "sample 1 (from 0) of the dataset: broken")
    with pytest.raises(BadSample, match=r"^sample 1 \(from 0\) of the dataset: broken$"):
        Guarded(dataset)[1]


def test_place_is_named_once_through_a_concatenation() -> None:
    joined = ConcatDataset([Guarded(Listed(GOOD)), Guarded(Listed(GOOD, BadSample("broken")))])
    reason = "sample 1 (from 0) of the dataset: broken"
    assert Guarded(joined, "skip")[2] == SkippedSample(2, reason)
    inner = ConcatDataset([Guarded(Listed(BadSample("broken"), SampleTooLong("long")), "skip", "skip")])
    assert Guarded(inner)[0] == SkippedSample(0, "sample 0 (from 0) of the dataset: broken")
    assert Guarded(inner)[1] == SkippedSample(1, "sample 1 (from 0) of the dataset: long")


def test_every_exception_says_its_sample_and_a_bug_its_line() -> None:
    """A programming error is a bad sample too, also under "skip"; the original is chained."""
    message = (
        r"^sample 1 \(from 0\) of the dataset: TypeError: bug \(an error of the code, at .*:\d+ in __get"
    )
    with pytest.raises(BadSample, match=message) as caught:
        Guarded(Listed(GOOD, TypeError("bug")))[1]
    assert isinstance(caught.value.__cause__, TypeError)
    skipped = Guarded(Listed(GOOD, RecursionError("deep")), "skip")[1]
    assert (
        isinstance(skipped, SkippedSample)
        and "RecursionError: deep (an error of the code, at" in skipped.reason
    )


def test_a_label_on_the_first_token_trains_nothing() -> None:
    only_first = {"tokens": [1, 2], "mask": [False, True]}
    with pytest.raises(BadSample, match=r"sample 0 .*nothing to train on: expected an assistant.*unmask"):
        Guarded(Listed(only_first))[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_too_long": "ignore"}, "on_too_long: expected one of raise, skip, got 'ignore'"),
        ({"train_on": "first"}, "train_on: expected one of all, last, got 'first'"),
        ({"ignore_columns": [3]}, "ignore_columns: expected names of columns, got 3"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample: expected one of raise, skip, got 'ignore'"),
        ({"image_root": "/no/such/folder"}, "image_root: expected a folder, found none at /no/such/folder"),
        ({"style": "llava"}, "style: expected auto"),
    ],
)
def test_bad_arguments(folder: Path, transform: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vision_chat_dataset(transform, source=write(folder, about()), **arguments)
