"""A learned token in front of every frame, as the first vision transformers have it.

frames of 3 and 2 patches:    p p p q q  ─>  C p p p C q q

n patches, f frames, d width. Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ClsToken(nn.Module):
    """The token and its learned position, [d] each.

    Args:
        width: d.
        std: of the normal distribution that both start from.
    """

    def __init__(self, width: int, std: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.weight, std=std)
        nn.init.normal_(self.position, std=std)

    def forward(self, patches: Tensor, frames: Sequence[int]) -> Tensor:
        """Patches [n, d] of frames with these numbers of patches -> [n + f, d]."""
        token = (self.weight + self.position)[None].to(patches.dtype)
        return torch.cat([part for frame in patches.split(list(frames)) for part in (token, frame)])

    @staticmethod
    def split(tokens: Tensor, frames: Sequence[int]) -> tuple[Tensor, Tensor]:
        """[n + f, d] -> the cls tokens [f, d] and the patches [n, d]."""
        parts = tokens.split([n for frame in frames for n in (1, frame)])
        return torch.cat(parts[::2]), torch.cat(parts[1::2])
