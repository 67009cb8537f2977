"""Columns that nobody reads: errors for media and conversation, notes for everything else."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
from PIL import Image

from torchtune_qwenvl.data import vision_chat_dataset
from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.transforms.errors import BadSample

QA = {"question": "what is this?", "answer": "x"}
CHATS = {
    "qa": QA,
    "messages": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]},
    "conversations": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}]},
}
MEDIA = (
    *(
        "image_path",
        "img",
        "imgs",
        "file_name",
        "filename",
        "image_0",
        "Image",
        "imagePath",
        "image-url",
        "IMAGES",
    ),
    *(
        "image_url",
        "picture",
        "photo",
        "image_bytes",
        "video_path",
        "clip",
        "frames",
        "img_list",
        "screenshot",
    ),
)


def notes(record: dict[str, Any], **options: Any) -> tuple[str, ...]:
    return MessageParser(**options).read(record, lambda text: text == "there.txt").notes


@pytest.mark.parametrize("style", CHATS)
@pytest.mark.parametrize("column", MEDIA)
def test_names_of_media_are_errors(style: str, column: str) -> None:
    value: Any = ["gone.png"] if column.endswith("s") else "gone.png"
    with pytest.raises(BadSample, match=rf"column '{column}' is not read, and names media: read it by "):
        notes({column: value, **CHATS[style]})
    assert notes({column: value, **CHATS[style]}, ignore_columns=[column]) == ()
    assert notes({column: [None, ""], **CHATS[style]}) == ()


def test_the_advice_of_the_error_reads_the_column() -> None:
    with pytest.raises(
        BadSample, match=r"dataset\.column_map\.image=img, or name it in dataset.ignore_columns"
    ):
        notes({"img": "a.png", **QA})
    with pytest.raises(BadSample, match=r"dataset\.column_map\.video=clip_path"):
        notes({"clip_path": "a.mp4", **QA})
    messages = MessageParser(column_map={"image": "img"})({"img": "a.png", **QA})
    assert messages[0].content[0] == {"type": "image", "content": "a.png"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("there.txt", "holds a file that exists, there.txt"),
        ([{"deep": ["there.txt"]}], "holds a file that exists, there.txt"),
        (b"\x89PNG", "holds data of a file"),
        (np.zeros((2, 2, 3)), "holds data of a file"),
        (Image.new("RGB", (1, 1)), "holds data of a file"),
        ("data:image/png;base64,AAAA", "holds data of a file"),
        ("https://x.org/a.JPG?w=3", "holds the address of a file"),
        ([{"role": "user", "content": "q"}], "looks like a part of the conversation"),
    ],
)
def test_values_tell_whatever_the_name_is(value: Any, message: str) -> None:
    with pytest.raises(BadSample, match=f"column 'extra' is not read, and {message}"):
        notes({"extra": value, **QA})


def test_an_address_next_to_an_image_is_metadata() -> None:
    record = {"image": "a.png", "coco_url": "https://x.org/a.jpg", **QA}
    assert notes(record) == ("the column 'coco_url' is not read",)
    part = {"type": "image", "path": "a.png"}
    turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "x"}]
    assert notes({"messages": turns, "coco_url": "https://x.org/a.jpg"}) == notes(record)


@pytest.mark.parametrize(
    "column",
    [
        *("input", "history", "context", "choices", "hint", "solution", "rationale", "caption"),
        *(
            "system_prompt",
            "prompt",
            "text",
            "answers",
            "multiple_choice_answer",
            "queries",
            "functions",
        ),
    ],
)
def test_conversation_is_an_error(column: str) -> None:
    with pytest.raises(BadSample, match=f"column '{column}' is not read, and looks like a part of the conv"):
        notes({column: ["A"], **QA})


@pytest.mark.parametrize(
    ("column", "value"), [("rejected_response", "bad"), ("chosen", "b"), ("label", False)]
)
def test_preferences_are_named(column: str, value: Any) -> None:
    with pytest.raises(BadSample, match=f"'{column}' is not read, and belongs to preference training"):
        notes({column: value, **QA})


@pytest.mark.parametrize("column", ["audio_path", "sound", "wav_file"])
def test_sound_is_named(column: str) -> None:
    with pytest.raises(BadSample, match="holds sound, which these models do not hear"):
        notes({column: "a.wav", **QA})


def test_metadata_is_a_note() -> None:
    metadata = {
        **{
            "id": "7",
            "source": "coco",
            "image_id": 3,
            "image_size": [3, 4],
            "question_type": "what",
            "label": 0.3,
        },
        **{"num_turns": 2, "score": 0.5, "has_image": True, "url": "https://x.org/page", "meta": {"a": [1]}},
    }
    assert notes({**metadata, **QA}) == tuple(f"the column '{name}' is not read" for name in metadata)
    assert notes({**metadata, **QA}, ignore_columns=["*"]) == ()


def test_only_its_own_name_ignores_a_column_that_is_read() -> None:
    record = {"image": "a.png", "image_id": "a", **QA}
    parts = {
        ignored: [part["type"] for part in MessageParser(ignore_columns=[ignored])(record)[0].content]
        for ignored in ("image*", "image")
    }
    assert parts == {"image*": ["image", "text"], "image": ["text"]}


def test_keys_of_turns_and_parts_are_named_too() -> None:
    answer = {"role": "assistant", "content": "x"}
    lost = {"role": "user", "content": "q", "images": ["a.png"]}
    with pytest.raises(
        BadSample, match=r"messages\[0\]: the key of a turn 'images' is not read, and names media"
    ):
        notes({"messages": [lost, answer]})
    part = {"type": "text", "text": "q", "image": "a.png"}
    with pytest.raises(BadSample, match=r"messages\[0\].content\[0\]: the key of a part 'image' is not read"):
        notes({"messages": [{"role": "user", "content": [part]}, answer]})
    part = {"type": "text", "text": "q", "cache": 1}
    said = {"role": "user", "content": [part], "name": "Ann"}
    assert notes({"messages": [said, answer]}) == (
        "the key of a turn 'name' is not read",
        "the key of a part 'cache' is not read",
    )
    entry = {"videos": [{"path": "a.mp4", "fsp": 1}], **QA}
    assert notes(entry) == ("the key of an entry of videos 'fsp' is not read",)


def test_a_mapped_column_does_not_hide_another() -> None:
    record = {"query": "q", "question": "other", "answer": "a"}
    with pytest.raises(
        BadSample, match="gives the name question to query, but there is a column question too"
    ):
        notes(record, column_map={"question": "query"})
    assert notes(record, column_map={"question": "query"}, ignore_columns=["question"]) == ()


class Keep:
    """Instead of a transform: what it would get."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": [0, 1], "mask": [True, False], "parts": sample["messages"][0].content}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_image_folder_by_its_path_keeps_its_images(tmp_path: Path, kind: str, streaming: bool) -> None:
    for seed, name in enumerate(("0.png", "1.png")):
        tiny.photo(30, 30, seed=seed).save(tmp_path / name)
    rows = [{"file_name": f"{i}.png", "question": "q", "answer": "a"} for i in range(2)]
    if kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "metadata.parquet"))
    dataset = vision_chat_dataset(Keep(), source=str(tmp_path), streaming=streaming)
    samples = list(dataset) if streaming else [dataset[0], dataset[1]]
    assert [sample["parts"][0]["content"].name for sample in samples] == ["0.png", "1.png"]


def test_a_video_folder_and_several_files_a_record(tmp_path: Path) -> None:
    tiny.photo(30, 30).save(tmp_path / "0.png")
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = [{"file_name": "a.mp4", **QA}, {"file_names": ["0.png", "0.png"], **QA}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = vision_chat_dataset(Keep(), source=str(tmp_path))
    kinds = [[part["type"] for part in dataset[i]["parts"]] for i in range(2)]
    assert kinds == [["video", "text"], ["image", "image", "text"]]


def test_the_file_that_exists_is_looked_for_where_images_are(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a").write_bytes(buffer.getvalue())
    (tmp_path / "data.jsonl").write_text(json.dumps({"source": "a", **QA}))
    for root in (None, tmp_path / "images"):
        dataset = vision_chat_dataset(Keep(), source=str(tmp_path / "data.jsonl"), image_root=root)
        if root is None:
            assert dataset[0]["notes"] == ("the column 'source' is not read",)
        else:
            with pytest.raises(
                BadSample, match=r"sample 0 .*'source' is not read, and holds a file that exists"
            ):
                dataset[0]
