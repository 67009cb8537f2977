"""Look at tokens: their norms, their first components as colours, their similarity to one of them.

Colours compare between pictures only if their components were fitted together: `TokenColours.fit` takes the
tokens of several images, and can be saved.

n tokens, d their width, h, w rows and columns of a map.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from torchtune_qwenvl.pictures.tokens import draw_tokens
from torchtune_qwenvl.transforms.images.decode import decode_image
from torchtune_qwenvl.vision.features import Features

_SPREAD = 2.5  # standard deviations of a component between black and full colour


@dataclass(frozen=True)
class TokenColours:
    """Three directions in the space of tokens, each a colour.

    Attributes:
        mean: [d].
        directions: [d, 3], the first principal components.
        scale: [3], standard deviation along each.
    """

    mean: Tensor
    directions: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, tokens: Sequence[Tensor]) -> TokenColours:
        """Principal components of the tokens [n_i, d] of one image or several.

        Raises:
            ValueError: fewer than 4 tokens, or tokens of different widths.
        """
        widths = {each.shape[-1] for each in tokens}
        if len(widths) != 1 or sum(len(each) for each in tokens) < 4:
            raise ValueError(
                f"expected at least 4 tokens of one width, got {[list(each.shape) for each in tokens]}"
            )
        together = torch.cat([each.detach().float().cpu() for each in tokens])
        mean = together.mean(0)
        _, values, vectors = torch.linalg.svd(together - mean, full_matrices=False)
        directions = vectors[:3].T
        # A component's sign is arbitrary: here its largest entry is positive, so that colours repeat.
        directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        return cls(mean, directions, values[:3] / len(together) ** 0.5)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Tokens [.., d] -> colours [.., 3] in 0 .. 1."""
        along = (tokens.detach().float().cpu() - self.mean) @ self.directions
        return (0.5 + along / (2 * _SPREAD * self.scale.clamp(min=1e-12))).clamp(0, 1)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {"mean": self.mean, "directions": self.directions, "scale": self.scale}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> TokenColours:
        """Read what `save` wrote."""
        return cls(**load_file(str(path)))


def similarity_map(tokens: Tensor, place: tuple[int, int]) -> Tensor:
    """Cosine of every token of a map [h, w, d] with the one at (row, column): [h, w].

    Raises:
        ValueError: a place outside of the map.
    """
    h, w = tokens.shape[:2]
    row, column = place
    if not (0 <= row < h and 0 <= column < w):
        raise ValueError(f"place {place}: the map has {h} rows and {w} columns")
    unit = torch.nn.functional.normalize(tokens.detach().float().cpu(), dim=-1)
    return unit @ unit[row, column]


def visualize_tokens(
    tokens: Tensor | np.ndarray | Features,
    save_path: str | Path | None = None,
    title: str = "",
    *,
    image: Any = None,
    grid: tuple[int, int] | None = None,
    colours: TokenColours | None = None,
    place: tuple[int, int] | None = None,
) -> Image.Image | None:
    """Draw the tokens of one image: norms as a heat map, components as colours, and a histogram.

    Args:
        tokens: [n, d], [1, n, d], a map [h, w, d], or the `Features` of one image.
        save_path: of the PNG; None returns the picture instead.
        title: above the drawing.
        image: the picture itself, drawn next to and below the maps.
        grid: (rows, columns) of tokens given as a list; None: a square.
        colours: fitted over several images, so that their colours compare; None: fitted on these tokens.
        place: (row, column) of a token: also draw the similarity to it.

    Raises:
        ValueError: several images, or tokens that do not fill their grid.
    """
    tokens = _as_map(tokens, grid)
    flat = tokens.flatten(0, 1)
    norms = flat.norm(dim=-1)
    shown = (colours or TokenColours.fit([flat]))(tokens)
    panels = [("norm", norms.view(tokens.shape[:2]).numpy()), ("components", shown.numpy())]
    if place is not None:
        panels.append((f"similarity to {place}", similarity_map(tokens, place).numpy()))
    picture = None if image is None else tv.to_pil_image(decode_image(image))
    path = Path(save_path) if save_path is not None else None
    options: dict[str, Any] = {"picture": picture, "mark": place, "title": title}
    if path is not None:
        draw_tokens(path, panels, norms.numpy(), **options)
        return None
    with tempfile.TemporaryDirectory() as folder:
        draw_tokens(Path(folder) / "tokens.png", panels, norms.numpy(), **options)
        return Image.open(Path(folder) / "tokens.png").copy()


def _as_map(tokens: Tensor | np.ndarray | Features, grid: tuple[int, int] | None) -> Tensor:
    if isinstance(tokens, Features):
        if len(tokens) != 1 or tokens.grids[0][0] != 1:
            raise ValueError(f"expected the features of one still image, got grids {list(tokens.grids)}")
        return tokens.map(0)[0].detach().float().cpu()
    found = torch.as_tensor(tokens).detach().float().cpu()
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if found.ndim == 3:
        return found
    if found.ndim != 2:
        raise ValueError(f"expected tokens [n, d], [1, n, d] or [h, w, d], got {list(found.shape)}")
    side = round(len(found) ** 0.5)
    rows, columns = grid or (side, side)
    if rows * columns != len(found):
        raise ValueError(
            f"{len(found)} tokens do not fill {rows} x {columns}: give their grid=(rows, columns)"
        )
    return found.view(rows, columns, -1)
