"""Features on disk: what is read is what was written, whatever happened to writer, file or disk meanwhile."""

import multiprocessing
import os
import pickle
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults.campaign import campaign_seed, campaign_size

from torchtune_qwenvl.training.features import store as store_module
from torchtune_qwenvl.training.features.entries import packed
from torchtune_qwenvl.training.features.reading import MediaReader
from torchtune_qwenvl.training.features.store import FeatureStore, StorePlace

FORK = multiprocessing.get_context("fork")
PARTS, WIDTH = 2, 8


def place(root: Path, limit: int = 2**30, **changes) -> StorePlace:
    return replace(StorePlace(root, "e", PARTS, WIDTH, limit), **changes)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def features(number: int) -> torch.Tensor:
    """Those of a number, of which each has another length."""
    drawn = torch.Generator().manual_seed(number)
    return torch.randn(1 + number % 7, PARTS, WIDTH, generator=drawn).bfloat16()


def found(store: FeatureStore, number: int) -> bool:
    """Whether a number is there; what is there has to be right."""
    got = store.get(key(number), len(features(number)))
    assert got is None or torch.equal(got, features(number)), f"wrong features of {number}"
    return got is not None


def write(root: Path, numbers: list[int]) -> FeatureStore:
    store = FeatureStore(place(root))
    for number in numbers:
        store.put(key(number), features(number))
    return store


def shards(root: Path) -> list[Path]:
    return sorted(root.glob("e/*.features"))


def test_read_by_another_process_and_by_one_that_looked_before(tmp_path: Path) -> None:
    early = FeatureStore(place(tmp_path))
    assert not found(early, 3)
    writer = write(tmp_path, [3, 4])
    writer.put(key(3), features(3))  # is there
    assert all(found(store, n) for store in (early, writer, FeatureStore(place(tmp_path))) for n in (3, 4))
    assert len(shards(tmp_path)) == 1 and len(early) == 2
    assert early.get(key(4), 99) is None  # as many tokens as the image has now
    for other in ({"fingerprint": "f"}, {"width": 4}, {"parts": 1}):
        assert not found(FeatureStore(place(tmp_path, **other)), 3)


def test_a_worker_that_is_no_fork_opens_the_store_itself(tmp_path: Path) -> None:
    write(tmp_path, [1])
    reader = MediaReader.__new__(MediaReader)
    reader.__dict__.update(_settings={}, _place=None, _store=None, _merge=1)
    reader.open(place(tmp_path), merge=2)
    again = pickle.loads(pickle.dumps(reader))
    assert again._store is None and again._place == place(tmp_path) and again._merge == 2


@pytest.mark.parametrize("where", ["payload", "head", "key", "cut", "gone", "empty"])
def test_what_is_damaged_is_written_again(tmp_path: Path, where: str) -> None:
    write(tmp_path, [1, 2, 3]).close()
    (shard,) = shards(tmp_path)
    content, half = bytearray(shard.read_bytes()), len(shard.read_bytes()) // 2
    before = FeatureStore(place(tmp_path))  # has looked, and maps nothing yet
    mapped = FeatureStore(place(tmp_path))
    assert all(found(mapped, n) for n in (1, 2, 3))
    if where in ("payload", "head", "key"):
        content[{"payload": 80 + 5, "head": 70, "key": 20}[where]] ^= 4
        shard.write_bytes(content)
    elif where == "gone":
        shard.unlink()
    else:
        os.truncate(shard, half if where == "cut" else 0)
    lost = [n for n in (1, 2, 3) if not found(FeatureStore(place(tmp_path)), n)]
    assert lost
    for store in (before, mapped):
        # A head is read once, and a file that is gone may still be mapped: what these have found is right.
        assert where in ("gone", "head", "key") or [n for n in (1, 2, 3) if not found(store, n)]
    write(tmp_path, [1, 2, 3]).close()
    for store in (before, mapped, FeatureStore(place(tmp_path))):
        assert all(found(store, n) for n in (1, 2, 3))


def test_every_bit_counts(tmp_path: Path) -> None:
    write(tmp_path, [1]).close()
    (shard,) = shards(tmp_path)
    good, drawn = shard.read_bytes(), random.Random(campaign_seed())
    size = len(good)
    for bit in drawn.sample(range(8 * size), campaign_size(60, 8 * size)):
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(content)
        assert not found(FeatureStore(place(tmp_path)), 1), bit


def test_the_limit_counts_all_encoders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, list(range(10))).close()
    taken = sum(path.stat().st_size for path in shards(tmp_path))
    store = FeatureStore(place(tmp_path, limit=2 * taken, fingerprint="other"))
    for number in range(100):
        store.put(key(number), features(number))
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.features")) <= 2 * taken
    assert 8 <= sum(found(store, n) for n in range(100)) <= 12
    assert caplog.text.count("feature_cache_gib") == 1
    assert all(found(FeatureStore(place(tmp_path)), n) for n in range(10))


def test_a_shard_that_is_long_enough_gets_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 500)
    monkeypatch.setattr(store_module, "MAX_MAPPED", 2)
    store = write(tmp_path, list(range(20)))
    assert len(shards(tmp_path)) > 4
    assert all(found(store, n) for n in range(20)) and len(store._mapped) == 2


def test_a_full_disk_stops_storing_and_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = write(tmp_path, [1])
    size = shards(tmp_path)[0].stat().st_size

    class Full:
        def __init__(self, file) -> None:
            self.file, self.tell, self.truncate = file, file.tell, file.truncate

        def write(self, data) -> int:
            if len(data) < 50:
                raise OSError(28, "No space left on device")
            return self.file.write(data[:-40])

    store._shard = Full(store._shard)  # type: ignore[assignment]
    store.put(key(2), features(2))
    assert "No space left" in caplog.text and store.full
    assert shards(tmp_path)[0].stat().st_size == size
    assert found(store, 1) and not found(store, 2)


def test_half_an_entry_that_is_taken_back_hides_nothing(tmp_path: Path) -> None:
    """A reader that looked while an entry was written finds what stands there later."""
    write(tmp_path, [1]).close()
    (shard,) = shards(tmp_path)
    reader, start = FeatureStore(place(tmp_path)), shard.stat().st_size
    with shard.open("r+b") as file:
        file.seek(start)
        file.write(packed(key(6), features(6))[:-20])
        file.flush()
        assert not found(reader, 6)
        file.truncate(start)
        file.seek(start)
        file.write(packed(key(7), features(7)))
    assert found(reader, 1) and found(reader, 7) and not found(reader, 6)


def _write_in_pieces(root: Path, numbers: list[int], piece: int, pieces: int) -> None:
    """Write until so many pieces are on the disk, then kill this process."""

    class Pieces:
        def __init__(self, file) -> None:
            self.file, self.tell, self.left = file, file.tell, pieces

        def write(self, data) -> int:
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return self.file.write(data[:piece])

    store = FeatureStore(place(root))
    store.put(key(numbers[0]), features(numbers[0]))
    store._shard = Pieces(store._shard)  # type: ignore[assignment]
    for number in numbers[1:]:
        store.put(key(number), features(number))


def test_killed_while_writing(tmp_path: Path) -> None:
    """40 kills at full size; each leaves a part of an entry, which no later run takes for one."""
    drawn = random.Random(campaign_seed())
    reader, written = FeatureStore(place(tmp_path)), set()
    for _ in range(campaign_size(5, 40)):
        numbers = drawn.sample(range(60), 12)
        piece, pieces = drawn.randint(1, 150), drawn.randint(0, 12)
        child = FORK.Process(target=_write_in_pieces, args=(tmp_path, numbers, piece, pieces))
        child.start()
        child.join()
        there = {n for n in range(60) if found(reader, n)}
        assert there == {n for n in range(60) if found(FeatureStore(place(tmp_path)), n)}
        assert there >= written | {numbers[0]}  # the first one was whole, and nothing is lost
        written = there
    assert all(found(write(tmp_path, list(range(60))), n) for n in range(60))


def _write_with_another(root: Path, numbers: list[int], both) -> None:
    both.wait()
    write(root, numbers)


def test_two_writers_at_once(tmp_path: Path) -> None:
    orders = [list(range(campaign_size(40, 400))) for _ in range(2)]
    orders[1].reverse()
    both = FORK.Barrier(2)
    writers = [FORK.Process(target=_write_with_another, args=(tmp_path, order, both)) for order in orders]
    for writer in writers:
        writer.start()
    reader = FeatureStore(place(tmp_path))
    while any(writer.is_alive() for writer in writers):
        [found(reader, number) for number in orders[0]]
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert all(found(reader, number) for number in orders[0])
    entries = sum(len(places) for places in reader._places.values())
    assert len(shards(tmp_path)) == 2 and entries == len(orders[0])  # none was written twice
