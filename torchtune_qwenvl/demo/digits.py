"""Write scikit-learn's 1,797 handwritten digits as images and conversations in LLaVA's format.

    data/images/train_0007_2.png        56 x 56, grey
    data/train.jsonl                     one conversation a line:
        {"image": "images/train_0007_2.png", "conversations": [
            {"from": "human", "value": "<image>\\nWhich digit is this?"},
            {"from": "gpt", "value": "The digit is 7."}]}

The digits have 8 x 8 pixels and are from 43 writers (https://archive.ics.uci.edu/dataset/80). Training images
are also written slightly rotated, shifted and scaled. Validation and test images are unchanged, and no digit
is in two of the three parts.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

QUESTION, ANSWER = "Which digit is this?", "The digit is {digit}."
SIDE = 56  # pixels: 4 x 4 patches, 2 x 2 visual tokens


@dataclass(frozen=True)
class Split:
    """One part of the data.

    Attributes:
        name: train, val or test.
        images: [n, 8, 8], ink from 0 to 16.
        digits: [n], the digit in each image.
    """

    name: str
    images: np.ndarray
    digits: np.ndarray


@dataclass(frozen=True)
class Warp:
    """A slight change: rotate by `angle` (radians), shift by `x, y` (pixels), scale by `scale`."""

    angle: float
    x: float
    y: float
    scale: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Warp":
        shift = 0.6 * SIDE / 8
        angle, scale = math.radians(rng.uniform(-8, 8)), rng.uniform(0.9, 1.1)
        return cls(angle, rng.uniform(-shift, shift), rng.uniform(-shift, shift), scale)

    def coefficients(self) -> tuple[float, ...]:
        """(a, b, c, d, e, f) for PIL: pixel (u, v) of the result is (a·u + b·v + c, d·u + e·v + f)."""
        cos, sin, middle = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale, SIDE / 2
        u, v = middle + self.x, middle + self.y
        return cos, sin, middle - cos * u - sin * v, -sin, cos, middle + sin * u - cos * v


def write_digits(
    folder: str,
    *,
    n_val: int = 120,
    n_test: int = 360,
    n_train: int | None = None,
    warped: int = 4,
    seed: int = 0,
) -> None:
    """Write train.jsonl, val.jsonl, test.jsonl and their images.

    Args:
        folder: the folder to write to; files of an earlier run are replaced.
        n_val: number of digits for validation.
        n_test: number of digits for measuring the accuracy.
        n_train: number of digits for training; None: all others.
        warped: changed copies of each training digit, in addition to the unchanged one.
        seed: seed for splitting the data and for the changes.
    """
    rng = np.random.default_rng(seed)
    for split in split_digits(n_val, n_test, n_train, rng):
        _write_split(Path(folder), split, warped if split.name == "train" else 0, rng)


def split_digits(n_val: int, n_test: int, n_train: int | None, rng: np.random.Generator) -> list[Split]:
    """Shuffle the digits and split them into three parts.

    Raises:
        ValueError: more digits are asked for than there are.
    """
    from sklearn.datasets import load_digits  # of the `demo` extra

    data = load_digits()
    total = len(data.target)
    n_train = total - n_val - n_test if n_train is None else n_train
    if min(n_val, n_test, n_train) < 1 or n_val + n_test + n_train > total:
        raise ValueError(
            f"expected at least 1 image each to train, validate and test on, {total} together; "
            f"got {n_train}, {n_val} and {n_test}"
        )
    order = np.split(rng.permutation(total)[: n_val + n_test + n_train], [n_test, n_test + n_val])
    return [
        Split(name, data.images[i], data.target[i])
        for name, i in zip(("test", "val", "train"), order, strict=True)
    ]


def draw_digit(ink: np.ndarray, warp: Warp | None = None) -> Image.Image:
    """Draw [8, 8] ink from 0 to 16 as dark on white, `SIDE` pixels wide."""
    small = Image.fromarray((255 - ink * (255 / 16)).round().astype(np.uint8))
    image = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if warp is None:
        return image
    return image.transform(
        image.size, Image.Transform.AFFINE, warp.coefficients(), Image.Resampling.BICUBIC, fillcolor=255
    )


def conversation(digit: int, image: str) -> dict:
    """The record of one image: a question and its answer."""
    exchange = {"human": f"<image>\n{QUESTION}", "gpt": ANSWER.format(digit=digit)}
    return {"image": image, "conversations": [{"from": who, "value": text} for who, text in exchange.items()]}


def _write_split(folder: Path, split: Split, warped: int, rng: np.random.Generator) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (ink, digit) in enumerate(zip(split.images, split.digits.tolist(), strict=True)):
        for copy in range(1 + warped):
            name = f"images/{split.name}_{number:04d}_{copy}.png"
            draw_digit(ink, Warp.draw(rng) if copy else None).save(folder / name, compress_level=1)
            lines.append(json.dumps(conversation(digit, name)))
    (folder / f"{split.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
