"""Videos in records: every way to name one, together with images, and where files are searched."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchtune.data import Message

from torchtune_qwenvl.data import vision_chat_dataset
from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.data.records.urls import UrlPolicy
from torchtune_qwenvl.transforms.errors import BadSample

ANSWER = {"role": "assistant", "content": "A cat."}


def parse(record: dict[str, Any]) -> list[list[Any]]:
    """Parts of every message: text as it is, media as (type, source, options where there are some)."""
    messages = MessageParser()(record)
    return [[_short(part) for part in message.content] for message in messages]


def _short(part: dict[str, Any]) -> Any:
    rest = {key: value for key, value in part.items() if key not in ("type", "content")}
    media = (part["type"], part["content"], *([rest] if rest else []))
    return part["content"] if part["type"] == "text" else media


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ({"type": "video", "path": "a.mp4"}, "a.mp4"),
        ({"type": "video", "video": "a.mp4"}, "a.mp4"),
        ({"type": "video", "content": "a.mp4"}, "a.mp4"),
        ({"type": "video", "url": "https://x.org/a.mp4", "path": None}, "https://x.org/a.mp4"),
        ({"type": "video_url", "video_url": {"url": "https://x.org/a.mp4"}}, "https://x.org/a.mp4"),
        ({"type": "video", "base64": "AAAA"}, {"base64": "AAAA"}),
        ({"type": "video", "video": ["0.jpg", "1.jpg"]}, ["0.jpg", "1.jpg"]),
        ({"video": "a.mp4"}, "a.mp4"),
    ],
)
def test_typed_parts(part: dict[str, Any], source: Any) -> None:
    question = {"role": "user", "content": [part, {"type": "text", "text": "<video>?"}]}
    assert parse({"messages": [question, ANSWER]})[0] == [("video", source), "<video>?"]


def test_options_travel_with_their_part() -> None:
    options = {
        **{"fps": 1.5, "min_frames": 2, "max_frames": 8, "min_pixels": 784, "max_pixels": 7840},
        **{"total_pixels": 50176, "source_fps": 30, "video_start": 1.0, "video_end": 2.5},
    }
    part = {"type": "video", "path": "a.mp4", **options, "num_frames": None, "note": "ignored"}
    assert parse({"messages": [{"role": "user", "content": [part]}, ANSWER]})[0] == [
        ("video", "a.mp4", options)
    ]


def test_parts_without_source_take_the_columns_in_order() -> None:
    kinds = ["video", "image", "video", "image"]
    content = [{"type": kind} for kind in kinds]
    record = {
        "messages": [{"role": "user", "content": content}, ANSWER],
        "images": ["a.jpg", "b.jpg"],
        "videos": ["a.mp4", ["0.jpg", "1.jpg"]],
    }
    expected = [("video", "a.mp4"), ("image", "a.jpg"), ("video", ["0.jpg", "1.jpg"]), ("image", "b.jpg")]
    assert parse(record)[0] == expected


def test_tags_of_both_kinds_in_several_turns() -> None:
    values = ["<video>\nWhat?", "It <video> is.", "And <image> in <video> ?", "That."]
    turns = [{"from": who, "value": v} for who, v in zip(["human", "gpt"] * 2, values, strict=True)]
    assert parse({"conversations": turns, "video": ["a.mp4", "b.mp4"], "image": "a.jpg"}) == [
        [("video", "a.mp4"), "What?"],
        ["It <video> is."],
        ["And", ("image", "a.jpg"), "in", ("video", "b.mp4"), "?"],
        ["That."],
    ]


def test_entries_of_a_column_may_bring_options() -> None:
    frames = {"video": ["0.jpg", "1.jpg"], "source_fps": 2, "fps": None}
    cut = {"path": "a.mp4", "video_end": 3.5}
    expected = [("video", ["0.jpg", "1.jpg"], {"source_fps": 2}), ("video", cut, {"video_end": 3.5})]
    record = {"question": "q", "answer": "a", "videos": [frames, cut]}
    assert parse(record)[0] == [*expected, "q"]
    turns = [{"from": "human", "value": "<video><video>q"}, {"from": "gpt", "value": "a"}]
    assert parse({"conversations": turns, "videos": [frames, cut]})[0] == [*expected, "q"]
    question = {"role": "user", "content": [{"type": "video"}, {"type": "video", "fps": 3}]}
    assert parse({"messages": [question, ANSWER], "videos": [frames, cut]})[0] == [
        expected[0],
        ("video", cut, {"video_end": 3.5, "fps": 3}),
    ]


@pytest.mark.parametrize("column", ["video", "videos"])
def test_questions_and_answers(column: str) -> None:
    record = {"question": "q", "answer": "a", column: "a.mp4", "image": ["a.jpg", "b.jpg"]}
    assert parse(record)[0] == [("image", "a.jpg"), ("image", "b.jpg"), ("video", "a.mp4"), "q"]
    mapped = MessageParser(column_map={"videos": "clips"})({"question": "q", "answer": "a", "clips": ["b"]})
    assert mapped[0].content[0] == {"type": "video", "content": "b"}


def test_files_are_found_as_images_are(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    for name in ("root/a.mp4", "root/0.jpg", "outside.mp4"):
        (tmp_path / name).write_bytes(b"x")
    find = MediaFinder(tmp_path / "root")
    assert find("a.mp4", kind="video") == (tmp_path / "root/a.mp4").resolve()
    assert find(["0.jpg", b"jpeg"], kind="video") == [(tmp_path / "root/0.jpg").resolve(), b"jpeg"]
    clip = torch.zeros(4, 3, 8, 8)
    assert find(clip, kind="video") is clip
    content = base64.b64encode(b"mp4").decode()
    for source in (
        {"base64": content},
        f"data:video/mp4;base64,{content}",
        f"data:image/gif;base64,{content}",
    ):
        assert find(source, kind="video") == b"mp4"
    for source, message in [
        ("../outside.mp4", "leaves image_root .*keep videos below image_root"),
        (["0.jpg", "../outside.mp4"], "leaves image_root"),
        ("b.mp4", "expected a video file at .*b.mp4, found nothing"),
        (["1.jpg"], "expected an image file at .*1.jpg"),
        (3, "expected a video as path, URL or bytes, got int 3.*name the video"),
        ("https://x.org/a.mp4", "a video URL, https://x.org/a.mp4.*allow_urls: true"),
        ("data:text/html;base64,AAAA", "expected data:video/..., got data:text/html"),
    ]:
        with pytest.raises(BadSample, match=message):
            find(source, kind="video")
    with pytest.raises(BadSample, match=r"127\.0\.0\.1.*expected public addresses only"):
        MediaFinder(urls=UrlPolicy())("http://127.0.0.1/a.mp4", kind="video")


class Keep:
    """Instead of a transform: what it would get."""

    def __call__(self, sample: dict[str, list[Message]]) -> dict[str, Any]:
        return {"tokens": [0, 1], "mask": [True, False], "messages": sample["messages"]}


def test_the_dataset_finds_videos_next_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = [{"question": "q", "answer": "a", "video": name} for name in ("a.mp4", "b.mp4")]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = vision_chat_dataset(Keep(), source=str(tmp_path / "data.jsonl"))
    assert dataset[0]["messages"][0].content[0]["content"] == (tmp_path / "a.mp4").resolve()
    with pytest.raises(BadSample, match=r"data.jsonl, sample 1 .*: expected a video file at .*b.mp4"):
        dataset[1]
