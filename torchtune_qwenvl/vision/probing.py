"""Which layer and which pooling of an encoder suit your classes: one pass over the images, two classifiers.

    folder/
      cat/  1.jpg 2.jpg ...
      dog/  ...

d width of a layer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from torchtune_qwenvl.modules.vision.features import check_pool, layer_indexes, pool_tokens
from torchtune_qwenvl.vision.classifiers import nearest_neighbours, ridge, split_by_class
from torchtune_qwenvl.vision.index.listing import list_images


@dataclass(frozen=True)
class Probed:
    """One layer, or the encoder's output, with one pooling.

    Attributes:
        layer: its index.
        at: "patches", or "merged" for the encoder's output: visual tokens after the merger, which is what the
            pipeline gives without `layers`.
        pool: how its tokens became one vector.
        knn: share of the held-out images that nearest neighbours get right.
        ridge: share that the ridge classifier gets right.
        strength: of the ridge, chosen on the training part.
    """

    layer: int
    at: str
    pool: str
    knn: float
    ridge: float
    strength: float


@dataclass(frozen=True)
class ProbeResult:
    """What `probe` found; `print` shows it as a table.

    Attributes:
        rows: every layer with every pooling; after the last layer the encoder's output.
        classes: name -> number of images.
        trained, held_out: numbers of images.
        k: neighbours.
        failed: path of each bad image -> the reason.
    """

    rows: Sequence[Probed]
    classes: Mapping[str, int]
    trained: int
    held_out: int
    k: int
    failed: Mapping[str, str]

    @property
    def best(self) -> Probed:
        """The highest share by ridge, of equal ones by nearest neighbours, then the lowest layer.

        It is the best of many on the same held-out images, so its share is a little too high.
        """
        return max(self.rows, key=lambda row: (row.ridge, row.knn, -row.layer, row.at == "patches"))

    @property
    def chance(self) -> float:
        """The share of the largest class."""
        return max(self.classes.values()) / sum(self.classes.values())

    def __str__(self) -> str:
        best, n = self.best, self.held_out
        error = math.sqrt(max(best.ridge * (1 - best.ridge), 0.25 / n) / n)
        lines = [
            f"{len(self.classes)} classes, {self.trained + n:,} images, {n:,} of them held out; "
            f"the largest class is {self.chance:.1%}",
            f"{'layer':>6}  {'pool':<5} {f'{self.k}-nn':>7} {'ridge':>7}",
        ]
        for row in self.rows:
            mark = "  best" if row is best else ""
            layer = "merged" if row.at == "merged" else row.layer
            lines.append(f"{layer:>6}  {row.pool:<5} {row.knn:>7.1%} {row.ridge:>7.1%}{mark}")
        lines.append(f"differences below {2 * error:.1%} are within the noise of {n:,} images")
        lines += [f"left out: {reason}" for reason in self.failed.values()]
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Draw the shares over the layers, as PNG."""
        from torchtune_qwenvl.pictures.layers import draw_layers  # matplotlib takes a while to import

        place: Callable[[Probed], int] = lambda row: row.layer + (row.at == "merged")  # noqa: E731
        curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for row in self.rows:
            curves[f"{row.pool}, ridge"].append((place(row), row.ridge))
            curves[f"{row.pool}, {self.k}-nn"].append((place(row), row.knn))
        merged = next((place(row) for row in self.rows if row.at == "merged"), None)
        best = (place(self.best), self.best.ridge)
        draw_layers(curves, best, self.chance, self.held_out, Path(path), merged=merged)


def probe(
    pipeline: Any,
    folder_of_classes: str | Path,
    layers: Literal["all"] | int | Sequence[int] = "all",
    pools: Sequence[str] | None = None,
    *,
    k: int = 5,
    held_out: float = 0.25,
    seed: int = 0,
    workers: int = 2,
    batch_tokens: int | None = None,
    on_bad: Literal["raise", "skip"] = "skip",
) -> ProbeResult:
    """Classify the images of a folder by each layer and pooling, in one pass over them.

    If the last layer is among them, the encoder's output after the merger is judged too, at no further cost.
    All vectors are kept in memory: 4 bytes x images x layers x pools x d.

    Args:
        pipeline: a `VisionPipeline`.
        folder_of_classes: a folder per class.
        layers: "all", one index or several; -1 is the last.
        pools: of "mean", "max" and "cls"; default: all that the encoder has.
        k: neighbours of the nearest-neighbour classifier.
        held_out: share of each class that is not trained on.
        seed: of the split.
        workers, batch_tokens, on_bad: of `VisionPipeline.stream`.

    Raises:
        ValueError: fewer than two classes, a class with fewer than two readable images, an unknown layer, or
            an unknown pooling.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    depth, has_cls = pipeline.encoder.depth, pipeline.encoder.cls_token is not None
    chosen = [layers] if isinstance(layers, int) else layers
    wanted = sorted(set(layer_indexes(None if chosen == "all" else list(chosen), depth)))
    pools = (("mean", "max", "cls") if has_cls else ("mean", "max")) if pools is None else pools
    if not pools:
        raise ValueError("pools: expected at least one pooling, got none")
    for pool in pools:
        check_pool(pool, has_cls)
    label_of = labelled(Path(folder_of_classes))
    options = {"batch_tokens": batch_tokens} if batch_tokens else {}
    stream = pipeline.stream(
        list(label_of), layers=wanted, at="patches", workers=workers, on_bad=on_bad, **options
    )
    vectors, paths = _vectors(stream, pools)
    names = sorted(set(label_of.values()))
    counts = Counter(label_of[path] for path in paths)
    if few := [name for name in names if counts[name] < 2]:
        raise ValueError(
            f"{folder_of_classes}: {counts[few[0]]} readable images of {few[0]}, expected at least 2"
        )
    labels = torch.tensor([names.index(label_of[path]) for path in paths])
    train, held = split_by_class(labels, held_out, seed)
    # "patches" of a layer first, then "merged".
    keys = sorted(vectors, key=lambda key: (key[0], key[1] == "merged", key[2]))
    rows = [_judge(*key, vectors[key], labels, train, held, k) for key in keys]
    failed = {str(path): reason for path, reason in stream.failed}
    return ProbeResult(rows, {name: counts[name] for name in names}, len(train), len(held), k, failed)


def labelled(folder: Path) -> dict[str, str]:
    """Path of each image -> name of its class, the folder in `folder` that holds it.

    Raises:
        ValueError: no folder, or fewer than two folders with images in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with a folder of images per class")
    label_of: dict[str, str] = {}
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        label_of |= {image.path: each.name for image in list_images(each)[1]}
    if len(set(label_of.values())) < 2:
        raise ValueError(
            f"{folder}: expected at least two folders with images, one per class, got "
            f"{', '.join(sorted(set(label_of.values()))) or 'none'}"
        )
    return label_of


def _vectors(stream: Any, pools: Sequence[str]) -> tuple[dict[tuple[int, str, str], Tensor], list[str]]:
    """Vectors [images, d] by layer, place and pooling, and the images' paths."""
    kept: dict[tuple[int, str, str], list[Tensor]] = defaultdict(list)
    paths: list[str] = []
    for features in stream:
        paths += features.paths
        for pool in pools:
            for layer, found in features.layers.items():
                pooled = pool_tokens(found.tokens, pool, found.cls or None)
                kept[layer, "patches", pool].append(pooled.detach().float().cpu())
            if features.output and pool != "cls":  # a merger takes patches only
                pooled = pool_tokens(features.output, pool)
                kept[max(features.layers), "merged", pool].append(pooled.detach().float().cpu())
    return {key: torch.cat(parts) for key, parts in kept.items()}, paths


def _judge(
    layer: int, at: str, pool: str, vectors: Tensor, labels: Tensor, train: Tensor, held: Tensor, k: int
) -> Probed:
    seen, seen_labels, unseen, truth = vectors[train], labels[train], vectors[held], labels[held]
    by_knn = nearest_neighbours(seen, seen_labels, unseen, k)
    by_ridge = ridge(seen, seen_labels, unseen)
    knn, right = ((found == truth).double().mean().item() for found in (by_knn, by_ridge.scores.argmax(1)))
    return Probed(layer, at, pool, knn, right, by_ridge.strength)
