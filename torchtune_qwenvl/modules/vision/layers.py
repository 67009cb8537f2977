"""The two ends of the vision encoder: pixels to patch embeddings, and patch features to visual tokens.

n patches, c channels, t frames per patch, p patch side, d encoder width, m merge size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Linear):
    """Patches to embeddings as one matrix product; the weight [d, c * t * p * p] is a conv kernel in files.

    Takes four kinds of `pixel_values`, distinguished by dtype and width:

        float  c * t * p * p   normalised, as transformers' processors make them
        float  c * p * p       the same for stills, whose t frames are equal
        uint8  c * t * p * p   raw; normalised here in fp32, then cast
        uint8  c * p * p       raw stills, an eighth of the bytes of the first kind

    For stills, the kernels of the t frames are first summed in fp32. This halves the work, and the parameter,
    its gradient and its weight decay stay those of the checkpoint.

    Args:
        channels: c.
        frames: t.
        patch: p.
        width: d.
        bias: whether the projection has one.
        mean: per channel, for values in 0 .. 1; without it uint8 is refused.
        std: the same.
        pixel_norm: acts on the normalised values [n, c * t * p * p] of every patch; needs t = 1.
    """

    def __init__(
        self,
        *,
        channels: int,
        frames: int,
        patch: int,
        width: int,
        bias: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pixel_norm: nn.Module | None = None,
    ) -> None:
        super().__init__(channels * frames * patch * patch, width, bias=bias)
        if pixel_norm is not None and frames > 1:
            raise ValueError(f"pixel_norm acts on whole patches: expected 1 frame per patch, got {frames}")
        self.pixel_norm = pixel_norm
        self.channels, self.frames, self.patch = channels, frames, patch
        self.still_width = channels * patch * patch
        if (mean is None) != (std is None) or any(x and len(x) != channels for x in (mean, std)):
            raise ValueError(f"image_mean and image_std need {channels} numbers each, got {mean} and {std}")
        self.scale = None if mean is None or std is None else (tuple(mean), tuple(std))
        self._scale_there: Tensor | None = (
            None  # `scale` on the pixels' device; not a buffer, so not in the state dict
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [n, c * p * p or c * t * p * p], uint8 or float -> [n, d]."""
        still = pixels.shape[-1] == self.still_width
        if not still and pixels.shape[-1] != self.in_features:
            raise ValueError(
                f"pixel_values: expected {self.in_features} values per patch, {self.still_width} for stills, "
                f"got {pixels.shape[-1]}; patch size and channels of transform and model must agree"
            )
        weight = self._still_weight() if still and self.frames > 1 else self.weight
        if not pixels.is_floating_point():
            pixels = self._normalise(pixels)
        pixels = pixels.to(weight.dtype)
        return F.linear(pixels if self.pixel_norm is None else self.pixel_norm(pixels), weight, self.bias)

    def _still_weight(self) -> Tensor:
        kernels = self.weight.unflatten(1, (self.channels, self.frames, -1))
        return kernels.sum(2, dtype=torch.float32).flatten(1).to(self.weight.dtype)

    def _normalise(self, pixels: Tensor) -> Tensor:
        if self.scale is None:
            raise ValueError(
                "pixel_values are uint8, but the model was built without image_mean and image_std: "
                "pass both to the builder, load the model from a folder with a preprocessor file, or let the "
                "transform ship floats"
            )
        if self._scale_there is None or self._scale_there.device != pixels.device:
            self._scale_there = 255 * torch.tensor(self.scale, device=pixels.device)[:, :, None]
        mean, std = self._scale_there
        return pixels.float().unflatten(-1, (self.channels, -1)).sub_(mean).div_(std).flatten(-2)


class PatchMerger(nn.Module):
    """Norm, then the m x m patches of a block are concatenated, then an MLP to the decoder's width.

    Args:
        norm: acts on single patches [n, d], or on whole blocks.
        mlp: m * m * d -> decoder width.
        merge: m.
        norm_after: whether `norm` comes after the concatenation, on [n / m^2, m * m * d].
    """

    def __init__(self, *, norm: nn.Module, mlp: nn.Module, merge: int, norm_after: bool = False) -> None:
        super().__init__()
        self.norm, self.mlp = norm, mlp
        self.block = merge * merge
        self.norm_after = norm_after

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] in merge-block order -> [n / m^2, decoder width]."""
        if self.norm_after:
            return self.mlp(self.norm(x.unflatten(0, (-1, self.block)).flatten(1)))
        return self.mlp(self.norm(x).unflatten(0, (-1, self.block)).flatten(1))


class GatedPatchMerger(nn.Module):
    """Norm, then a convolution over each m x m block, then a gated MLP of the decoder's width w.

    Args:
        norm: acts on single patches [n, d].
        downsample: d * m * m -> w, the convolution as a matrix: kernel [w, d, m, m] in files.
        proj: w -> w.
        proj_norm: acts on [n / m^2, w].
        mlp: w -> w, gated.
        merge: m.
    """

    def __init__(
        self,
        *,
        norm: nn.Module,
        downsample: nn.Module,
        proj: nn.Module,
        proj_norm: nn.Module,
        mlp: nn.Module,
        merge: int,
    ) -> None:
        super().__init__()
        self.norm, self.downsample = norm, downsample
        self.proj, self.proj_norm, self.mlp = proj, proj_norm, mlp
        self.block = merge * merge

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] in merge-block order -> [n / m^2, w]."""
        # In a kernel, the block is the inner axis and d the outer one; the patches must be in the same order.
        blocks = self.norm(x).unflatten(0, (-1, self.block)).transpose(1, 2).flatten(1)
        return self.mlp(F.gelu(self.proj_norm(self.proj(self.downsample(blocks)))))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), OpenAI CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)
