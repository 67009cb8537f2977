"""Write a file of conversations about images in which some records are damaged, in ten ways."""

import json
from collections.abc import Callable
from pathlib import Path

import tiny
from PIL import Image

POOL = 50  # good images, shared by the records


def record(image: str, number: int, **changes) -> dict:
    turns = [
        {"from": "human", "value": f"<image>\nWhat is number {number}?"},
        {"from": "gpt", "value": "It is " + "a thing " * (1 + number % 7)},
    ]
    return {"image": image, "conversations": turns, **changes}


def write_images(folder: Path) -> None:
    """Write the good images, and one broken image file of each kind."""
    for i in range(POOL):
        tiny.photo(56 + 7 * (i % 9), 60 + 11 * (i % 7), seed=i).save(folder / f"{i}.jpg", quality=80)
    whole = (folder / "0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("This is no image, whatever its name says.")
    Image.new("1", (9600, 9600)).save(folder / "huge.png")
    Image.new("RGB", (1407, 7)).save(folder / "strip.png")


def _two_tags(number: int) -> dict:
    changed = record("1.jpg", number)
    changed["conversations"][0]["value"] += " And <image>?"
    return changed


def _other_role(number: int) -> dict:
    changed = record("1.jpg", number)
    changed["conversations"][1]["from"] = "narrator"
    return changed


# Part of the expected error message -> the line that must cause it.
WAYS: dict[str, Callable[[int], str]] = {
    "not valid JSON": lambda n: json.dumps(record("1.jpg", n))[:-20],
    "expected an image file at": lambda n: json.dumps(record(f"gone_{n}.jpg", n)),
    "cannot be decoded": lambda n: json.dumps(record("cut.jpg", n)),
    "0 bytes": lambda n: json.dumps(record("empty.jpg", n)),
    "not an image": lambda n: json.dumps(record("text.jpg", n)),
    "more than max_image_pixels": lambda n: json.dumps(record("huge.png", n)),
    "aspect ratio": lambda n: json.dumps(record("strip.png", n)),
    "<image> tags": lambda n: json.dumps(_two_tags(n)),
    "expected an assistant turn": lambda n: json.dumps(
        record("1.jpg", n, conversations=record("1.jpg", n)["conversations"][:1])
    ),
    "unknown role 'narrator'": lambda n: json.dumps(_other_role(n)),
}


def write_damaged(folder: Path, records: int) -> tuple[Path, dict[int, str]]:
    """Write `records` lines, damaging every hundredth in one of the ways; returns file and {index: way}."""
    write_images(folder)
    ways = list(WAYS)
    damaged = {index: ways[index // 100 % len(ways)] for index in range(37, records, 100)}
    lines = [
        WAYS[damaged[i]](i) if i in damaged else json.dumps(record(f"{i % POOL}.jpg", i))
        for i in range(records)
    ]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "data.jsonl", damaged
