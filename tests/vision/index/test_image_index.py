"""ImageIndex: what it finds, what it refuses, and what it says about bad files."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from stand_in import StandIn, write_files
from torch.nn.functional import cosine_similarity

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.vision.index import ImageIndex, exact


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 images, five of them bad."""
    return write_files(tmp_path / "photos", 30, bad=(0, 7, 8, 21, 29))


@pytest.fixture
def index(photos: Path, tmp_path: Path) -> ImageIndex:
    return ImageIndex.build(photos, StandIn(), tmp_path / "index", part_size=7, workers=0)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_holds_vectors_and_names_and_bad_files(index: ImageIndex, photos: Path) -> None:
    folder = index.store.folder
    names = [json.loads(line)["name"] for line in (folder / "files.jsonl").read_text().splitlines()]
    assert len(index) == len(names) == 25 and names[:2] == ["a/00002.jpg", "a/00004.jpg"]
    vectors = np.concatenate([np.load(part) for part in sorted(folder.glob("part-*.npy"))])
    for name, vector in zip(names, vectors, strict=True):
        assert np.array_equal(vector, StandIn().vector(photos / name).numpy())
    bad = [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]
    assert [Path(line["name"]).stem for line in bad] == ["00000", "00008", "00007", "00021", "00029"]
    assert all("0 bytes, expected an image" in line["reason"] for line in bad)
    assert index.failed == {line["name"]: line["reason"] for line in bad}
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["complete"] and meta["rows"] == 25 and meta["failed"] == 5 and meta["width"] == 8


@pytest.mark.parametrize("many", [False, True])
def test_hits_are_those_of_a_plain_comparison(
    index: ImageIndex, photos: Path, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK", 4 * 8 * 3)  # three vectors at a time
    queries = torch.randn(4, 8)
    stored = torch.stack([StandIn().vector(photos / name) for name in index.names])
    found = index.search(queries, k=6) if many else [index.search(query, k=6) for query in queries]
    for query, hits in zip(queries, found, strict=True):
        scores, rows = cosine_similarity(query, stored).topk(6)
        assert [hit.row for hit in hits] == rows.tolist()
        torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), scores)
        assert [hit.path for hit in hits] == [photos / index.names[row] for row in rows]


def test_an_image_finds_itself_and_equal_scores_come_in_order(index: ImageIndex, photos: Path) -> None:
    name = index.names[11]
    (photos / "b/copy.jpg").write_bytes((photos / name).read_bytes())
    index.add(photos, StandIn(), workers=0)
    hits = index.search(photos / name, StandIn(), k=2)
    assert [hit.name for hit in hits] == [name, "b/copy.jpg"] and hits[0].score == pytest.approx(1)
    assert hits[0].score <= 1 and len(index.search(photos / name, StandIn(), k=100)) == 26
    several = index.search([photos / name, str(photos / index.names[3])], StandIn(), k=1)
    assert [hits[0].row for hits in several] == [11, 3]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_any_batch_size_gives_the_same_bytes(
    index: ImageIndex, photos: Path, tmp_path: Path, batch: int
) -> None:
    out = tmp_path / "again"
    ImageIndex.build(photos, StandIn(), out, part_size=7, batch_tokens=batch, workers=0)
    assert content(out) == content(index.store.folder)


def test_only_what_is_new_is_encoded(index: ImageIndex, photos: Path, tmp_path: Path) -> None:
    before, pipeline = content(index.store.folder), StandIn()
    assert index.add(photos, pipeline) == 0 and not pipeline.seen
    ImageIndex.build(photos, pipeline, index.store.folder)
    assert content(index.store.folder) == before and not pipeline.seen
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_text("something else")
    assert index.add([photos / "a", elsewhere], pipeline) == 1
    assert pipeline.seen == [str(elsewhere)] and index.names[-1] == pipeline.seen[0]
    again = ImageIndex.load(index.store.folder)
    assert again.names == index.names and again.search(pipeline.vector(pipeline.seen[0]), k=1)[0].row == 25


def test_a_mended_file_comes_in_when_asked_for(index: ImageIndex, photos: Path) -> None:
    (photos / "b/00007.jpg").write_text("good")
    assert index.add(photos, StandIn()) == 0
    assert index.add(photos, StandIn(), retry_failed=True) == 1
    assert index.names[-1] == "b/00007.jpg" and len(index.failed) == 4


def test_a_bad_file_can_stop_the_build(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSample, match=r"00000\.jpg: 0 bytes, expected an image"):
        ImageIndex.build(photos, StandIn(), tmp_path / "out", on_bad="raise")
    files = sorted(photos.rglob("*.jpg"), key=lambda file: file.stem)[1:]
    with pytest.raises(BadSample, match=r"00007\.jpg"):
        ImageIndex.build(files, StandIn(), tmp_path / "more", on_bad="raise", part_size=3)
    kept = ImageIndex.load(tmp_path / "more")
    assert [Path(name).stem for name in kept.names] == [f"{n:05d}" for n in range(1, 7)]
    assert not kept.store.meta.complete


def test_photos_may_move(index: ImageIndex, photos: Path, tmp_path: Path) -> None:
    moved = photos.rename(tmp_path / "moved")
    hit = ImageIndex.load(index.store.folder, root=moved).search(moved / "a/00002.jpg", StandIn(), k=1)[0]
    assert hit.path == moved / "a/00002.jpg" and hit.path.is_file()


def test_half_precision_halves_the_files(photos: Path, tmp_path: Path) -> None:
    index = ImageIndex.build(photos, StandIn(), tmp_path / "half", dtype="float16")
    assert np.load(tmp_path / "half/part-00000.npy").dtype == np.float16
    assert index.search(photos / "a/00004.jpg", StandIn(), k=1)[0].score == pytest.approx(1, abs=1e-3)


def test_a_vector_that_is_not_finite_is_a_bad_image(photos: Path, tmp_path: Path) -> None:
    class Huge(StandIn):
        def vector(self, path) -> torch.Tensor:
            return super().vector(path) * (1e6 if str(path).endswith("00004.jpg") else 1)

    index = ImageIndex.build(photos, Huge(), tmp_path / "half", dtype="float16")
    assert len(index) == 24 and 'use dtype="float32"' in index.failed["a/00004.jpg"]


def test_an_index_of_another_encoder_is_kept_as_it_is(index: ImageIndex, photos: Path) -> None:
    before, other = content(index.store.folder), StandIn(fingerprint="0" * 64)
    for refused in (
        lambda: index.add(photos, other),
        lambda: index.search(photos / "a/00002.jpg", other),
        lambda: ImageIndex.build(photos, other, index.store.folder),
    ):
        with pytest.raises(ValueError, match="made by another encoder, or with other image settings"):
            refused()
    with pytest.raises(ValueError, match=r"was made with .*'mean'.*, got .*'max'"):
        ImageIndex.build(photos, StandIn(), index.store.folder, pool="max")
    assert content(index.store.folder) == before


@pytest.mark.parametrize(
    ("query", "pipeline", "message"),
    [
        (torch.ones(7), None, r"expected a vector of 8 numbers, or several, got the shape \(7,\)"),
        (torch.ones(2, 2, 8), None, r"got the shape \(2, 2, 8\)"),
        (torch.full((8,), torch.nan), None, "the query's vector is not finite"),
        ("cat.jpg", None, "needs the pipeline"),
        ("a red car", StandIn(), "there is no text tower"),
    ],
)
def test_a_wrong_query_gets_an_answer(index: ImageIndex, query, pipeline, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index.search(query, pipeline)


def test_no_images_and_no_index(index: ImageIndex, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("dear")
    bad = write_files(tmp_path / "bad", 2, bad=(0, 1))
    for refused, message in (
        (lambda: ImageIndex.build(tmp_path / "empty", StandIn(), tmp_path / "out"), "no images in"),
        (lambda: ImageIndex.build([], StandIn(), tmp_path / "out"), "no images"),
        (lambda: ImageIndex.build(tmp_path / "none", StandIn(), tmp_path / "out"), "no such folder"),
        (lambda: ImageIndex.build(bad, StandIn(), tmp_path / "other"), "holds letter.txt and no meta.json"),
        (lambda: ImageIndex.load(tmp_path / "other"), "expected a folder that ImageIndex.build has written"),
        (lambda: ImageIndex.build(bad, StandIn(), tmp_path / "out"), "none of 2 images could be read"),
        (lambda: ImageIndex.load(tmp_path / "out").search(torch.ones(8)), "no vectors in this index"),
        (lambda: ImageIndex.build(bad, StandIn(), tmp_path / "o", dtype="int8"), "dtype: expected one of"),
        (lambda: index.search(torch.ones(8), k=0), "k: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert not (tmp_path / "o").exists() and [p.name for p in (tmp_path / "other").iterdir()] == [
        "letter.txt"
    ]


def test_a_damaged_index_is_named(index: ImageIndex) -> None:
    folder = index.store.folder
    part = folder / "part-00001.npy"
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"part-00001\.npy: missing or damaged"):
        ImageIndex.load(folder)
    (folder / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match="not the meta"):
        ImageIndex.load(folder)


def test_vectors_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    """What a build and a search hold per image is less than half of its vector: names, no vectors."""
    peaks = []
    for count in (200, 2000):
        photos = write_files(tmp_path / f"photos_{count}", count)
        tracemalloc.start()
        pipeline = StandIn(width=1024)
        pipeline.seen = _Forgetful()
        index = ImageIndex.build(photos, pipeline, tmp_path / f"index_{count}", part_size=50, workers=0)
        index.search(photos / index.names[0], pipeline)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 1800 < 2048


class _Forgetful(list):
    def append(self, item: object) -> None:
        pass


def test_export_as_clip_retrieval_reads_it(index: ImageIndex, photos: Path, tmp_path: Path) -> None:
    out = index.export_clip_retrieval(tmp_path / "clip")
    vectors = np.load(out / "img_emb/img_emb_0.npy")
    paths = parquet.read_table(out / "metadata/metadata_0.parquet").column("image_path").to_pylist()
    assert vectors.dtype == np.float16 and vectors.shape == (25, 8)
    assert paths == [str(photos / name) for name in index.names]
    assert np.linalg.norm(vectors.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="not empty"):
        index.export_clip_retrieval(out)
