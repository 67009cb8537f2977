"""An index that keeps the tokens of its images: late interaction from disk."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from stand_in import StandIn, write_files

from torchtune_qwenvl.cli.main import main
from torchtune_qwenvl.vision import ImageIndex, VisionPipeline, late_interaction, pool_by_factor


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 images of 1 to 4 tokens, two of them bad."""
    return write_files(tmp_path / "photos", 40, bad=(7, 12))


def build(photos: Path, out: Path, **options) -> ImageIndex:
    return ImageIndex.build(photos, StandIn(), out, pool=None, workers=0, **options)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_hits_are_those_of_late_interaction(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    module = importlib.import_module("torchtune_qwenvl.vision.index.late_interaction")
    monkeypatch.setattr(module, "BLOCK", 4 * 8 * block)
    index = build(photos, tmp_path / "index", part_size=9)
    tokens = [StandIn().tokens(photos / name) for name in index.names]
    assert len(index) == 38 and {len(each) for each in tokens} == {1, 2, 3, 4}
    queries = [torch.randn(3, 8), torch.randn(1, 8), torch.randn(5, 8)]
    for query, hits in zip(queries, index.search(queries, k=6), strict=True):
        scores, rows = (late_interaction(query, tokens) / len(query)).topk(6)
        assert [hit.row for hit in hits] == rows.tolist()
        torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), scores)
        assert index.search(query, k=6) == hits
    for name in (index.names[0], index.names[-1]):
        (best,) = index.search(photos / name, StandIn(), k=1)
        assert best.name == name and best.score == pytest.approx(1)
    assert len(index.search(queries[0], k=100)) == 38


def test_what_is_new_is_added_and_a_resume_is_the_same_to_the_byte(photos: Path, tmp_path: Path) -> None:
    whole = build(photos, tmp_path / "whole", part_size=9)
    files = [photos / name for name in [*whole.names, *whole.failed]]
    everything = sorted(files, key=lambda file: file.relative_to(photos).parts)
    ImageIndex.build(everything[:9], StandIn(), tmp_path / "again", pool=None, root=photos, part_size=9)
    again = build(photos, tmp_path / "again")
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    (photos / "a/new.jpg").write_text("new")
    assert again.add(photos, StandIn(), workers=0) == 1 and again.names[-1] == "a/new.jpg"
    assert ImageIndex.load(tmp_path / "again").search(photos / "a/new.jpg", StandIn(), k=1)[0].row == 38
    rows = [len(np.load(part)) for part in sorted((tmp_path / "again").glob("part-*.npy"))]
    assert sum(rows) == sum(again.store.token_counts()) and len(again.store.token_counts()) == 39


def test_what_does_not_fit_is_refused(photos: Path, tmp_path: Path) -> None:
    index = build(photos, tmp_path / "index", factor=2)
    single = ImageIndex.build(photos, StandIn(), tmp_path / "single", workers=0)
    for refused, message in (
        (lambda: build(photos, tmp_path / "index", factor=3), r"was made with .*'factor': 2.*, got .*3"),
        (lambda: ImageIndex.build(photos, StandIn(), tmp_path / "index"), r"was made with .*None.*'mean'"),
        (lambda: build(photos, tmp_path / "new", backend="faiss"), "this index keeps all tokens"),
        (lambda: ImageIndex.load(tmp_path / "index", backend="usearch"), "this index keeps all tokens"),
        (lambda: index.export_clip_retrieval(tmp_path / "clip"), "one vector per image"),
        (lambda: build(photos, tmp_path / "new", factor=0), "factor: expected at least 1"),
        (lambda: ImageIndex.build(photos, StandIn(), tmp_path / "new", factor=2), "only with pool=None"),
        (lambda: index.search(torch.ones(3, 7)), "expected a vector of 8 numbers"),
        (lambda: index.search([torch.ones(3, 8), torch.ones(3, 7)]), "expected a vector of 8 numbers"),
        (lambda: index.add(photos, StandIn(fingerprint="0" * 64)), "made by another encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert not (tmp_path / "new").exists() and len(single.search(torch.ones(8))) == 10


def test_a_damaged_list_of_images_is_named(photos: Path, tmp_path: Path) -> None:
    index = build(photos, tmp_path / "index")
    file = tmp_path / "index/files.jsonl"
    file.write_text(file.read_text().replace('"tokens": 1', '"tokens": 3'))
    with pytest.raises(ValueError, match=r"files\.jsonl counts \d+ tokens, the parts hold \d+"):
        index.search(torch.ones(1, 8))


def test_with_an_encoder_from_the_command_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(6):
        (tmp_path / "photos").mkdir(exist_ok=True)
        tiny.photo(60 + 20 * number, 90, seed=number).save(tmp_path / f"photos/{number}.png")
    out, read = str(tmp_path / "index"), ["--max-pixels", "12544"]
    encoder = ["--encoder", str(tiny_folder), *read, "--workers", "0"]
    main(["embed", str(tmp_path / "photos"), *encoder, "--out", out, "--pool", "none", "--factor", "2"])
    main(["search", out, str(tmp_path / "photos/4.png"), "-k", "2"])
    printed = capsys.readouterr().out
    assert "6 images, 0 left out, 64 numbers per token" in printed and "1.0000  4.png" in printed
    pipeline = VisionPipeline.from_checkpoint(tiny_folder, max_pixels=12544)
    pooled = [pool_by_factor(pipeline(tmp_path / f"photos/{number}.png").tokens[0], 2) for number in range(6)]
    hits = ImageIndex.load(out).search(tmp_path / "photos/2.png", pipeline, k=6)
    scores = torch.tensor([hit.score for hit in hits])
    expected = late_interaction(pooled[2], pooled) / len(pooled[2])
    torch.testing.assert_close(scores, expected[[hit.row for hit in hits]], rtol=1e-5, atol=1e-5)
    assert torch.equal(scores, scores.sort(descending=True).values) and hits[0].name == "2.png"
