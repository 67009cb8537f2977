"""probe: its classifiers against plain definitions, its table, and its errors."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from torchtune_qwenvl.vision import VisionPipeline, probe
from torchtune_qwenvl.vision.classifiers import nearest_neighbours, ridge, split_by_class

COLOURS = {"blue": (20, 30, 200), "green": (30, 190, 40), "red": (200, 30, 20)}


@pytest.fixture(scope="module")
def pipeline() -> VisionPipeline:
    torch.manual_seed(0)
    return VisionPipeline.from_builder("vit_small", depth=3, embed_dim=32, num_heads=2, img_size=56)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours with noise, 12 images each; one of green is broken."""
    folder, generator = tmp_path_factory.mktemp("classes"), torch.Generator().manual_seed(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(12):
            noise = torch.randint(-20, 21, (40, 60, 3), generator=generator)
            pixels = (torch.tensor(colour) + noise).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number}.png")
    (folder / "green/3.png").write_bytes(b"")
    return folder


def test_every_layer_and_pooling_is_judged(pipeline: VisionPipeline, folder: Path, tmp_path: Path) -> None:
    result = probe(pipeline, folder, workers=0)
    places = [(0, "patches"), (1, "patches"), (2, "patches"), (2, "merged")]
    assert [(row.layer, row.at, row.pool) for row in result.rows] == [
        (*place, pool) for place in places for pool in ("max", "mean")
    ]
    assert result.classes == {"blue": 12, "green": 11, "red": 12} and result.held_out == 9
    assert result.trained == 26 and [Path(path).name for path in result.failed] == ["3.png"]
    assert result.best.ridge == 1 and max(row.knn for row in result.rows) == 1
    lines = str(result).splitlines()
    assert "3 classes, 35 images, 9 of them held out; the largest class is 34.3%" in lines[0]
    assert len(lines) == 2 + 8 + 2 and [line.split()[0] for line in lines].count("merged") == 2
    assert sum(line.endswith("best") for line in lines) == 1
    assert str(probe(pipeline, folder, workers=0)) == str(result)
    result.plot(tmp_path / "layers.png")
    assert Image.open(tmp_path / "layers.png").width > 500


def test_a_layer_is_the_pipelines(pipeline: VisionPipeline, folder: Path) -> None:
    """Judged by hand from the pipeline's own call."""
    (row,) = probe(pipeline, folder, layers=-2, pools=["mean"], k=3, workers=0).rows
    paths = [
        f
        for name in COLOURS
        for f in sorted((folder / name).iterdir(), key=lambda f: f.name)
        if f.stat().st_size
    ]
    labels = torch.tensor([list(COLOURS).index(path.parent.name) for path in paths])
    vectors = pipeline(paths, layers=1, pool="mean").pooled
    train, held = split_by_class(labels, 0.25, 0)
    found = nearest_neighbours(vectors[train], labels[train], vectors[held], 3)
    assert row.layer == 1 and row.knn == (found == labels[held]).double().mean()
    _, merged = probe(pipeline, folder, layers=-1, pools=["mean"], k=3, workers=0).rows
    vectors = pipeline(paths, pool="mean").pooled
    found = nearest_neighbours(vectors[train], labels[train], vectors[held], 3)
    assert merged.at == "merged" and merged.knn == (found == labels[held]).double().mean()


def test_split_is_by_class_and_seed() -> None:
    labels = torch.tensor([0] * 8 + [1] * 2 + [2] * 41)
    train, held = split_by_class(labels, 0.25, seed=1)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(51))
    assert torch.bincount(labels[held]).tolist() == [2, 1, 10]
    assert torch.equal(held, split_by_class(labels, 0.25, seed=1)[1])
    assert not torch.equal(held, split_by_class(labels, 0.25, seed=2)[1])


def test_nearest_neighbours_vote_and_the_nearer_class_wins_ties() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.05, 1.0]])
    held = torch.tensor([[10.0, 1.0], [0.1, 1.0], [1.0, 1.3]])
    labels = torch.tensor([1, 1, 0, 0])
    assert nearest_neighbours(train, labels, held, 1).tolist() == [1, 0, 0]
    assert nearest_neighbours(train, labels, held, 4).tolist() == [1, 0, 0]
    assert nearest_neighbours(train, torch.tensor([1, 0, 0, 0]), held, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("width", [4, 60])
def test_ridge_is_the_normal_equations_and_leave_one_out(width: int) -> None:
    labels = torch.arange(30) % 3
    train = torch.randn(30, width) + 0.7 * torch.randn(3, width)[labels]
    train = torch.cat([train, torch.ones(30, 1)], 1)  # a constant column, too
    held = torch.cat([torch.randn(5, width), torch.full((5, 1), 9.0)], 1)

    def solve(rows: torch.Tensor, queries: torch.Tensor, strength: float) -> torch.Tensor:
        """With the scale of all rows, as ridge has it, and a mean of the rows that are there."""
        spread = train[:, :width].double().std(0, correction=0)
        x, y = train[rows, :width].double() / spread, torch.eye(3).double()[labels[rows]]
        centred = x - x.mean(0)
        system = centred.T @ centred + 30 * strength * torch.eye(width)
        weight = torch.linalg.solve(system, centred.T @ (y - y.mean(0)))
        return y.mean(0) + (queries[:, :width].double() / spread - x.mean(0)) @ weight

    for strength in (1e-2, 1.0):
        found = ridge(train, labels, held, [strength]).scores
        torch.testing.assert_close(found, solve(torch.arange(30), held, strength))
    strengths, right = (1e-3, 1e-1, 10.0), []
    for strength in strengths:
        out = [
            solve(torch.arange(30) != row, train[row : row + 1], strength).argmax() == labels[row]
            for row in range(30)
        ]
        right.append(sum(out))
    assert right[strengths.index(ridge(train, labels, held, strengths).strength)] == max(right)


def test_mistakes_get_an_answer(pipeline: VisionPipeline, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one/cats").mkdir(parents=True)
    Image.new("RGB", (56, 56)).save(tmp_path / "one/cats/1.png")
    (tmp_path / "few/dogs").mkdir(parents=True)
    (tmp_path / "few/cats").mkdir()
    for place in ("dogs/1", "dogs/2", "cats/1"):
        Image.new("RGB", (56, 56)).save(tmp_path / f"few/{place}.png")
    for given, options, message in (
        (tmp_path / "none", {}, "expected a folder with a folder of images per class"),
        (tmp_path / "one", {}, "at least two folders with images, one per class, got cats"),
        (tmp_path / "few", {}, "1 readable images of cats, expected at least 2"),
        (folder, {"layers": [3]}, "the encoder has the layers 0 to 2"),
        (folder, {"pools": ["cls"]}, "this encoder has no cls token"),
        (folder, {"pools": []}, "expected at least one pooling"),
        (folder, {"k": 0}, "k: expected at least 1"),
        (folder, {"held_out": 1.5}, "expected a share between 0 and 1"),
        (folder, {"on_bad": "raise"}, r"3\.png"),
    ):
        with pytest.raises(ValueError, match=message):
            probe(pipeline, given, workers=0, **options)
