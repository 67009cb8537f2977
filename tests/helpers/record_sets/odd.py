"""Good records of every style, and odd values to put into them."""

import copy
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_ADD = {"name": "zoom", "description": "d", "parameters": {"type": "object", "properties": {"box": {}}}}
_CLIP = {"video": ["a.png", "a.png"], "source_fps": 2}


def _part(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, **more}


def _asks(content: Any, answer: Any = "A cat.", **marks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer, **marks}]


def _says(question: str, answer: str = "A cat.", **marks: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer, **marks}]


# The images a.png and b.png lie next to the data.
GOOD: dict[str, dict[str, Any]] = {
    "llava": {"id": "7", "image": "a.png", "conversations": _says("<image>\nWhat is this?")},
    "sharegpt": {
        "images": ["a.png", "b.png"],
        "system": "Be brief.",
        "conversations": [*_says("<image> and <image>?"), *_says("More?", "No.", weight=0)],
    },
    "openai": {
        "messages": [
            {"role": "system", "content": "S"},
            *_asks([_part("image", path="a.png", max_pixels=20070), _part("text", text="Q")], weight=1),
        ]
    },
    "image_url": {
        "messages": _asks(
            [_part("image_url", image_url={"url": f"data:image/png;base64,{PNG}"}), _part("text", text="Q")],
            [_part("text", text="A")],
        )
    },
    "tags in messages": {"messages": _asks("<image>What?", loss=True), "images": ["a.png"]},
    "swift": {"query": "<image>What?", "response": "b", "history": [["q", "a"]], "images": ["a.png"]},
    "alpaca": {"instruction": "What?", "input": "Look.", "output": "b", "images": [{"path": "a.png"}]},
    "trl": {
        "prompt": [{"role": "user", "content": [_part("image"), _part("text", text="Q")]}],
        "completion": [{"role": "assistant", "content": [_part("text", text="b")]}],
        "images": ["a.png"],
    },
    "qa": {"image": "b.png", "question": "What is this?", "answer": "A cat.", "weight": 0.5},
    "base64": {"images": [{"base64": PNG}, {"path": "a.png"}], "question": "What?", "answer": "A."},
    "video part": {
        "messages": _asks(
            [
                _part(
                    "video",
                    **{"video": ["a.png", "a.png"], "source_fps": 2, "fps": 2, "video_start": 0},
                    **{"video_end": 2, "min_frames": 1, "max_frames": 4, "total_pixels": 100000},
                ),
                _part("text", text="Q"),
            ],
            "A",
        )
    },
    "video column": {"videos": [_CLIP], "conversations": _says("<video>?", "A.", masked=False)},
    "tools": {
        "tools": [{"type": "function", "function": _ADD}],
        "messages": [
            {"role": "user", "content": "Q"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "zoom", "arguments": '{"box": [1, 2]}'}}],
            },
            {"role": "tool", "content": "Stop"},
            {"role": "assistant", "content": "Stop."},
        ],
    },
    "tool turns": {
        "tools": '[{"name": "now"}]',
        "conversations": [
            {"from": "human", "value": "Q?"},
            {"from": "function_call", "value": '{"name": "now", "arguments": {}}'},
            {"from": "observation", "value": "9:30"},
            {"from": "gpt", "value": "Half.", "loss_scale": 0.25},
        ],
    },
    "dict of lists": {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}},
    "json text": {"conversations": json.dumps(_says("q", "a"))},
}


def _nested(depth: int, key: str | None = None) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] if key is None else {key: value}
    return value


# Values, and functions that make those that cannot be copied.
_ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**400, -(2**63), 2**31),
    *("", " ", "\x00", "\ud800", "a\udfffb", "<image>" * 3, "<|image_pad|>", "x" * 5000, "0", "[]", "1e999"),
    *([], {}, [[]], [None], [""], {"": None}, {"bytes": None, "path": None}, [1, 2, 3], {"type": "text"}),
    *({"path": 5}, {"bytes": "abc"}, {"bytes": [1, 2]}, {"base64": "\ud800"}, {"base64": "é"}, b"\x00\xff"),
    *(
        "../" * 30 + "etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "http://[::1",
        "file://[",
        "data:",
    ),
    *(
        "http://a:99999999/",
        "http://\udcff/",
        "data:image/png;base64,",
        "data:image/png;base64,AAAA",
        "loop.png",
    ),
    *(
        "\u202e" + "e\u0301" * 50,
        "/dev/zero",
        "\x00.png",
        "a" * 300 + ".png",
        "a.png\n",
        ".",
        "a.png",
        "v.mp4",
    ),
    *('{"a":' * 2000, "[" * 5000, '{"name": "f", "arguments": ' + "[" * 3000 + "]" * 3000 + "}"),
    *(
        "[" + "9" * 5000 + "]",
        partial(_nested, 50),
        partial(_nested, 900),
        partial(_nested, 900, "a"),
        partial(_nested, 1500),
        partial(_nested, 3000, "role"),
    ),
    *(
        {"role": "user", "content": "q"},
        {1: 2},
        (1, "a"),
        {"url": "a.png"},
        [["q", "a"]],
        [["q"]],
        {"role": []},
    ),
]


def _fresh(odd: Any) -> Any:
    """An odd value of its own: records are changed further."""
    return odd() if callable(odd) else copy.deepcopy(odd)


_KEYS = (
    "image images video videos messages conversations system tools question answer query response history "
    "instruction input output prompt completion role from value content type path url text tool_calls weight "
    "loss train masked loss_scale max_pixels min_pixels resized_height fps num_frames video_start source_fps "
    "audio name arguments parameters function reasoning_content objects image_path label id"
)
KEYS = _KEYS.split(" ")
ROLES = (
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "gpt",
    "observation",
    "function_call",
    "video",
    "image",
)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a record that is not nested too deeply, the record itself left out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        if len(path) < 12:
            yield from places(one, (*path, key))


def replaced() -> Iterator[tuple[str, Any]]:
    """Every value of every good record, replaced by every odd value."""
    for name, record in GOOD.items():
        for path in places(record):
            for odd in _ODD:
                changed = copy.deepcopy(record)
                _holder(changed, path)[path[-1]] = _fresh(odd)
                yield f"{name} {path}", changed


def mutated(rng: random.Random) -> tuple[str, Any]:
    """A good record with one to three random changes: values, keys, roles, order, wrapping, JSON."""
    name = rng.choice(list(GOOD))
    record = copy.deepcopy(GOOD[name])
    for _ in range(rng.choice((1, 1, 2, 3))):
        path = rng.choice(list(places(record)) or [()])
        if path:
            with suppress(RecursionError):  # copying or writing what is nested too deeply
                _change(_holder(record, path), path[-1], rng)
    return f"{name} mutated", record


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    way = rng.random()
    if way < 0.4:
        holder[key] = _fresh(rng.choice(_ODD))
    elif way < 0.5:
        del holder[key]
    elif way < 0.6:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {rng.choice(KEYS): holder[key]}
    elif way < 0.8 and isinstance(holder, dict):
        holder[rng.choice(KEYS)] = _fresh(rng.choice(_ODD))
    elif way < 0.9:
        holder[key] = rng.choice(ROLES)
    elif isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(rng.choice(holder)))
    else:
        holder[key] = json.dumps(holder[key], default=str)


def broken_line(rng: random.Random) -> bytes:
    """A line of JSON of a good record with damaged, missing or added bytes."""
    line = bytearray(json.dumps(GOOD[rng.choice(list(GOOD))]).encode())
    way, at = rng.random(), rng.randrange(len(line))
    if way < 0.4:
        for _ in range(rng.randint(1, 5)):
            line[rng.randrange(len(line))] = rng.randrange(256)
    elif way < 0.6:
        del line[at:]
    else:
        odd = (
            b"[" * 9000,
            b'{"a":' * 9000,
            b"9" * 5000,
            b"NaN",
            b"\\ud800",
            b"\xff\xfe",
            b"1e999",
            b"\x00" * 9,
        )
        line[at:at] = rng.choice(odd)
    return bytes(line).replace(b"\n", b" ")


def _holder(record: Any, path: tuple) -> Any:
    for key in path[:-1]:
        record = record[key]
    return record
