"""Cursors: every record once over all ranks, starting at any place, for every kind of source."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from torch.utils.data import IterableDataset

from torchtune_qwenvl.data.streams.kinds import AnyStream, NumberedStream
from torchtune_qwenvl.data.streams.sources import open_stream
from torchtune_qwenvl.data.streams.stream import Share, Stream

KINDS = ["lines", "parquet", "array", "iterable", "stateful", "component", "numbers"]


class Counting(IterableDataset):
    """11 records; counts how many were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        for i in range(11):
            self.read += 1
            yield {"question": str(i)}


class Stateful(Counting):
    """Has the methods of torchdata's stateful datasets."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        start, self.at = self.at, 0
        for self.at in range(start + 1, 12):
            self.read += 1
            yield {"question": str(self.at - 1)}
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def write_lines(folder: Path, sizes: list[int]) -> list[Path]:
    files = []
    for number, size in enumerate(sizes):
        files.append(folder / f"{number}.jsonl")
        lines = [json.dumps({"question": f"{number}-{i}"}) for i in range(size)]
        # A byte order mark, blank lines, and no newline at the end: all of it is allowed.
        files[-1].write_bytes(b"\xef\xbb\xbf" + "\n\n".join(lines).encode())
    return files


def write_parquet(folder: Path, sizes: list[int]) -> list[str]:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    kinds = datasets.Features({"question": datasets.Value("string"), "image": datasets.Image()})
    for number, size in enumerate(sizes):
        rows = {
            "question": [f"{number}-{i}" for i in range(size)],
            "image": [{"bytes": data.getvalue()}] * size,
        }
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(
            folder / f"{number}.parquet", batch_size=3
        )
    return [str(folder / f"{number}.parquet") for number in range(len(sizes))]


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stream]:
    """Each of 11 records."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "a.json").write_text(json.dumps([{"question": str(i)} for i in range(11)]))
    lines = [json.dumps({"question": str(i)}) + "\n" for i in range(11)]
    (folder / "a.txt").write_text("".join(lines))
    arguments = {"path": "json", "data_files": str(folder / "a.txt"), "split": "train", "streaming": True}
    return {
        "lines": open_stream([str(file) for file in write_lines(folder, [4, 1, 6])]),
        "parquet": open_stream(write_parquet(folder, [5, 6])),
        "array": open_stream(str(folder / "a.json")),
        "iterable": open_stream(Counting()),
        "stateful": open_stream(Stateful()),
        "component": open_stream({"_component_": "datasets.load_dataset", **arguments}),
        "numbers": NumberedStream(None, 11),
    }


def word(item: Any) -> str:
    record = json.loads(item.record) if isinstance(item.record, bytes) else item.record
    return record["question"] if isinstance(record, dict) else str(record)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_record_once_and_from_any_place(
    streams: dict[str, Stream], kind: str, world: int, shuffle: bool
) -> None:
    stream, all_words = streams[kind], []
    for rank in range(world):
        share = Share(rank, world, seed=5, shuffle=shuffle)
        cursor = stream.open(share, 2)
        states, words = [cursor.state_dict()], []
        for item in cursor:
            words.append(word(item))
            states.append(json.loads(json.dumps(cursor.state_dict())))  # plain numbers and strings
        for done, state in enumerate(states):
            again = stream.open(share, 2, state)
            assert [word(item) for item in again] == words[done:], (kind, rank, done)
        assert cursor.state_dict() == {}  # so that the next pass opens at its start
        all_words += words
    assert len(all_words) == 11 and len(set(all_words)) == 11


@pytest.mark.parametrize("kind", ["lines", "parquet", "numbers"])
def test_files_come_in_another_order_each_pass(streams: dict[str, Stream], kind: str) -> None:
    orders = {
        tuple(word(item) for item in streams[kind].open(Share(shuffle=True, seed=seed), number))
        for number in range(4)
        for seed in range(2)
    }
    assert len(orders) > 1
    kept = [[word(i) for i in streams[kind].open(Share(shuffle=False), number)] for number in (0, 1)]
    assert kept[0] == kept[1] == sorted(kept[0], key=lambda text: [int(part) for part in text.split("-")])


def test_images_stay_as_they_are_stored(streams: dict[str, Stream]) -> None:
    item = next(streams["parquet"].open(Share(), 0))
    assert item.record["image"]["bytes"].startswith(b"\x89PNG")


def test_places_in_messages(tmp_path: Path, streams: dict[str, Stream]) -> None:
    lines = open_stream([str(file) for file in write_lines(tmp_path, [2])])
    assert [item.where for item in lines.open(Share(), 0)] == [
        f"{tmp_path}/0.jsonl, line {line}" for line in (1, 3)
    ]
    assert next(streams["parquet"].open(Share(), 0)).where.endswith("1.parquet, sample 0 (from 0)")
    second = next(streams["parquet"].open(Share(1, 2), 0))
    assert second.where.endswith("sample 0 of process 1 (from 0)")
    assert next(streams["iterable"].open(Share(1, 2), 0)).where == "Counting, sample 1 (from 0)"


def test_what_has_a_state_is_not_read_again() -> None:
    for source, read in ((Counting(), 11), (Stateful(), 5)):
        stream = AnyStream(source, "source")
        cursor = stream.open(Share(), 0)
        for _ in range(6):
            next(cursor)
        state = cursor.state_dict()
        source.read = 0
        assert len(list(stream.open(Share(), 0, state))) == 5 and source.read == read


def test_a_file_that_became_shorter_is_no_silent_end(tmp_path: Path) -> None:
    stream = open_stream([str(file) for file in write_lines(tmp_path, [6])])
    cursor = stream.open(Share(), 0)
    for _ in range(5):
        next(cursor)
    (tmp_path / "0.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"0\.jsonl is shorter than when the run that is resumed"):
        next(stream.open(Share(), 0, cursor.state_dict()))


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a stream has no slices"):
        open_stream(str(write_lines(tmp_path, [3])[0]), split="train[:1]")
    with pytest.raises(ValueError, match="found nothing"):
        open_stream(str(tmp_path / "no.jsonl"))
    with pytest.raises(ValueError, match=r"datasets\.load_dataset says"):
        open_stream("no/such-dataset-here")
