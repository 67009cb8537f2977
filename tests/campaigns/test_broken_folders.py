"""Checkpoint folders with one broken file: each gives what the whole one gives, or an error that says where.

Headers of safetensors, indices, and every JSON file that model and transform are read from.
"""

import copy
import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from faults.campaign import campaign_seed, campaign_size

from torchtune_qwenvl import load_model, load_transform

FAMILIES = ("qwen2_5_vl", "qwen3_vl_moe", "qwen3_5", "glm4v_moe")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ODD: list[Any] = [
    *(0, -1, -8, 1, 3, 2**31, 2**32, 2**40, 2**63, 10**30, 1.5, 1e308, float("nan"), float("inf")),
    *("8", "", None, [], {}, True, [1, 2], "\ud800", {"a": {"b": 1}}),
]
SECONDS = 20


@pytest.fixture(scope="module", params=FAMILIES)
def source(request, tmp_path_factory) -> Path:
    return tiny.save_tiny_folder(tmp_path_factory.mktemp("whole") / request.param, family=request.param)


@pytest.fixture(scope="module")
def whole(source) -> tuple[float, ...]:
    return loaded(source)


def loaded(folder: Path) -> tuple[float, ...]:
    """Load model and transform; what the model is, in short."""
    load_transform(folder)
    return tuple(float(p.detach().double().sum()) for p in load_model(folder).parameters())


def header_of(source: Path) -> tuple[dict[str, Any], bytes]:
    raw = (source / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def as_file(header: Any, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def broken_headers(source: Path, rng: random.Random, n: int) -> Iterator[tuple[str, str, bytes]]:
    """(what was done, file, its bytes) for `n` headers, each with one fault."""
    header, data = header_of(source)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(n):
        h, name = copy.deepcopy(header), rng.choice(names)
        entry, way = h[name], rng.choice(sorted(WAYS))
        result = WAYS[way](rng, h, name, entry, data)
        yield f"{way} {name} {json.dumps(h.get(name))[:90]}", WEIGHTS, as_file(result or h, data)
    for raw in (
        b"[" * 200000,
        b'{"a":' * 200000,
        b"\xff\xfe{}",
        b"[]",
        b"",
        b'{"a": {"shape": [' + b"9" * 5000,
    ):
        yield f"header {raw[:20]!r}", WEIGHTS, as_file(raw, data)
    whole = (source / WEIGHTS).read_bytes()
    for length in (0, 1, 2**31, 2**60, 2**63, 2**64 - 1, len(data)):
        yield f"header length {length}", WEIGHTS, length.to_bytes(8, "little") + whole[8:]


def _offsets(rng, h, name, entry, data):
    entry["data_offsets"] = rng.choice([[], [1], None, "x", [0, 4, 8], [[0], [4]], {"a": 1}])


def _offset(rng, h, name, entry, data):
    entry["data_offsets"][rng.randrange(2)] = rng.choice(ODD)


def _shape(rng, h, name, entry, data):
    other = [[], [rng.choice(ODD)], [2**31, 2**33], [-1, -8], None, "ab", [[1]], 5]
    entry["shape"] = rng.choice([*other, [*entry["shape"], 0], [*entry["shape"], 2]])


def _dtype(rng, h, name, entry, data):
    entry["dtype"] = rng.choice(["F16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "X", None, 3, [], "C64"])


def _overlap(rng, h, name, entry, data):
    same = [n for n in h if n not in (name, "__metadata__") and h[n]["shape"] == entry["shape"]]
    entry["data_offsets"] = list(h[rng.choice(same)]["data_offsets"]) if same else [0, 4]


def _gap(rng, h, name, entry, data):
    entry["data_offsets"] = [x + 4 for x in entry["data_offsets"]]


def _drop(rng, h, name, entry, data):
    del h[name]


def _add(rng, h, name, entry, data):
    end = len(data)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    beyond = {"dtype": "F32", "shape": [2**20], "data_offsets": [0, 2**22]}
    h[f"more.{name}"] = rng.choice([empty, beyond, copy.deepcopy(entry), {}, None, [], "x"])


def _metadata(rng, h, name, entry, data):
    h["__metadata__"] = rng.choice([5, [], "x", {"format": 5}, {"a": {"b": 1}}, {"a": None}])


def _twice(rng, h, name, entry, data):
    return json.dumps(h)[:-1].encode() + f', "{name}": {json.dumps(h[name])}}}'.encode()


def _entry(rng, h, name, entry, data):
    h[name] = rng.choice([None, 5, "x", [], {}, {"dtype": "F32"}, [entry]])


WAYS: dict[str, Callable[..., bytes | None]] = {
    "offsets": _offsets, "offset": _offset, "shape": _shape, "dtype": _dtype, "overlap": _overlap,
    "gap": _gap, "drop": _drop, "add": _add, "metadata": _metadata, "twice": _twice, "entry": _entry,
}  # fmt: skip


def broken_indices(source: Path, rng: random.Random, n: int) -> Iterator[tuple[str, str, bytes]]:
    """The same for an index in front of the one file."""
    names = [name for name in header_of(source)[0] if name != "__metadata__"]
    full = dict.fromkeys(names, WEIGHTS)
    files = ["../x/model.safetensors", "/etc/passwd", 5, None, [WEIGHTS], {}, ".", "..", "", "a\0b", "\ud800"]
    files += ["config.json", "a" * 5000, "gone.safetensors", "a\\b.safetensors", "\n.safetensors", True, 1.5]
    for file in files:
        yield f"index of {file!a:.30}", INDEX, _index(dict.fromkeys(names, file))
        yield f"index with {file!a:.30}", INDEX, _index({**full, rng.choice(names): file})
    for weight_map in ({}, [], "x", None, 5, {**full, "evil": WEIGHTS}, {"\ud800": WEIGHTS}):
        yield f"weight_map {weight_map!a:.30}", INDEX, _index(weight_map)
    for raw in (b"[" * 100000, b"{", b"\xff", b"null", b'{"weight_map": {"a": 1, "a": 2}}'):
        yield f"index {raw[:20]!r}", INDEX, raw
    yield "metadata", INDEX, json.dumps({"weight_map": full, "metadata": 5}).encode()


def _index(weight_map: Any) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def broken_json(source: Path, rng: random.Random, n: int) -> Iterator[tuple[str, str, bytes]]:
    """The same for a value of one of the JSON files; half of them for config.json."""
    files = {path.name: json.loads(path.read_text()) for path in sorted(source.glob("*.json"))}
    for _ in range(n):
        name = rng.choice(["config.json", rng.choice(sorted(files))])
        content = copy.deepcopy(files[name])
        path = rng.choice(list(paths(content))[:4000])
        at = content
        for step in path[:-1]:
            at = at[step]
        value = rng.choice([*ODD, "deleted"])
        if value == "deleted":
            del at[path[-1]]
        else:
            at[path[-1]] = value
        yield f"{name} {'.'.join(map(str, path))[:60]} = {value!a:.30}", name, json.dumps(content).encode()
    for name, content in files.items():
        raw = json.dumps(content).encode()
        for other in (b"[]", b"null", b"[" * 100000, raw[:-30], b"", bytes(50), b"\xef\xbb\xbf" + raw, b"5"):
            yield f"{name}: {other[:12]!r}", name, other


def paths(content: Any, at: tuple = ()) -> Iterator[tuple]:
    if at:
        yield at
    for step in (
        content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    ):
        yield from paths(content[step], (*at, step))


def with_file(folder: Path, source: Path, name: str, content: bytes) -> Path:
    """A folder of links to the files of `source`, but one of them is another."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    (folder / name).write_bytes(content)
    return folder


def outcome(folder: Path, whole: tuple[float, ...]) -> str:
    """ "same", "other", "refused" or what is wrong with the way in which it was refused."""
    signal.alarm(SECONDS)
    try:
        return "same" if loaded(folder) == whole else "other"
    except ValueError as error:
        said = str(error)
        return "refused" if str(folder) in said or "config.json" in said else f"names no file: {said[:150]}"
    except Exception as error:
        return f"{type(error).__name__}: {error!a:.150}"
    finally:
        signal.alarm(0)


# What a reader cannot know: another value of the right kind may be another model's or another transform's.
SILENT = {"headers": ("same",), "indices": ("same",), "JSON": ("same", "other")}
KINDS = {
    "headers": (broken_headers, 30, 400),
    "indices": (broken_indices, 0, 0),
    "JSON": (broken_json, 60, 2500),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_read_right_or_refused_by_name(source, whole, kind, tmp_path):
    make, small, full = KINDS[kind]
    rng = random.Random(campaign_seed())
    found, wrong = Counter(), []
    previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("too long")))
    try:
        for i, (what, name, content) in enumerate(make(source, rng, campaign_size(small, full))):
            got = outcome(with_file(tmp_path / f"{i}", source, name, content), whole)
            found[got if got in ("same", "other", "refused") else "wrong"] += 1
            if got not in ("refused", *SILENT[kind]):
                wrong.append(f"{what}: {got}")
    finally:
        signal.signal(signal.SIGALRM, previous)
    print(f"{source.name} {kind}: {dict(found)}")
    assert not wrong, f"{len(wrong)} of {sum(found.values())}: " + "\n".join(wrong[:30])
    assert found["refused"] > sum(found.values()) / 4
