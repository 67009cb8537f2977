"""Approximate search gives what exact search gives, from a graph that is kept and completed."""

from pathlib import Path

import pytest
from stand_in import StandIn, write_files

from torchtune_qwenvl.vision.index import ImageIndex, approximate


@pytest.mark.parametrize("backend", ["faiss", "usearch"])
def test_a_graph_finds_what_a_comparison_finds(tmp_path: Path, backend: str) -> None:
    photos, pipeline = write_files(tmp_path / "photos", 300), StandIn(width=16)
    exact = ImageIndex.build(photos, pipeline, tmp_path / "index", part_size=64)
    graph = ImageIndex.load(tmp_path / "index", backend=backend)
    queries = [str(photos / name) for name in exact.names[:20]]

    def agreement(k: int = 5) -> float:
        pairs = zip(exact.search(queries, pipeline, k), graph.search(queries, pipeline, k), strict=True)
        shared = [len({hit.row for hit in a} & {hit.row for hit in b}) for a, b in pairs]
        return sum(shared) / (k * len(queries))

    assert agreement() >= 0.98
    assert graph.search(queries[0], pipeline, 1)[0].score == pytest.approx(1, abs=1e-5)
    file = tmp_path / f"index/search.{backend}"
    made = file.stat().st_mtime_ns
    ImageIndex.load(tmp_path / "index", backend=backend).search(queries[0], pipeline)
    assert file.stat().st_mtime_ns == made
    write_files(tmp_path / "photos", 340)
    exact.add(photos, pipeline)
    graph = ImageIndex.load(tmp_path / "index", backend=backend)
    queries = [str(photos / name) for name in exact.names[-20:]]
    assert agreement() >= 0.98 and file.stat().st_mtime_ns > made
    # More hits than there are vectors: a graph may miss some, and gives none twice.
    rows = [hit.row for hit in graph.search(queries[0], pipeline, 500)]
    assert 0.98 * 340 <= len(rows) == len(set(rows)) <= 340


def test_a_backend_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_files(tmp_path / "photos", 3)
    monkeypatch.setattr(approximate.FaissSearch, "package", "no_such_package")
    with pytest.raises(ValueError, match=r"is not installed .* pip install faiss-cpu, or use backend"):
        ImageIndex.build(photos, StandIn(), tmp_path / "out", backend="faiss")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="expected one of exact, faiss, usearch, got 'annoy'"):
        ImageIndex.build(photos, StandIn(), tmp_path / "out", backend="annoy")
