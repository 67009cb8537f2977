"""A plain ViT of one image size under the names of a guide to a "Qwen3-VL ViT pipeline", in its three sizes.

The network is that guide's: patches of 14 pixels, rotary positions, no cls token. Qwen3-VL's own encoder
differs (patches of 16 pixels and two frames, a table of positions, a merger, deepstack) and its tokens alone
fit Qwen3: `VisionPipeline.from_checkpoint` loads it.

b images, c channels, n tokens in reading order, d their width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchtune_qwenvl.models.vit import vit

#       width  layers  heads
SIZES = {
    "small": (512, 12, 8),
    "base": (1024, 24, 16),
    "large": (1280, 32, 16),
}


class Qwen3VisionTransformer(nn.Module):
    """A ViT on images of one size: normalised [b, c, img_size, img_size] -> tokens [b, n, embed_dim].

    Args:
        img_size: side of the images in pixels, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        in_channels: c.
        embed_dim: d.
        depth: number of layers.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over `embed_dim`.
        dropout: share dropped in training.

    Raises:
        ValueError: an image that is no whole number of patches.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 14,
        in_channels: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size} is no multiple of patch_size {patch_size}")
        self.img_size, self.patch_size, self.in_channels = img_size, patch_size, in_channels
        self.encoder = vit(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            patch_size=patch_size,
            in_channels=in_channels,
            dropout=dropout,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [b, c, img_size, img_size] -> [b, n, embed_dim], row by row.

        Raises:
            ValueError: images of another shape.
        """
        expected = (self.in_channels, self.img_size, self.img_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"expected images [b, {', '.join(map(str, expected))}], got {list(images.shape)}"
            )
        side, p = self.img_size // self.patch_size, self.patch_size
        cells = images.unflatten(3, (side, p)).unflatten(2, (side, p))  # [b, c, rows, p, columns, p]
        patches = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
        tokens = self.encoder(patches, [(1, side, side)] * len(images))
        return tokens.unflatten(0, (len(images), -1))

    def get_num_patches(self) -> int:
        """n."""
        return (self.img_size // self.patch_size) ** 2

    def get_embed_dim(self) -> int:
        """d."""
        return self.encoder.embed_dim


def create_qwen3_vl_vit(
    model_size: str = "base", img_size: int = 224, patch_size: int = 14, **arguments: Any
) -> Qwen3VisionTransformer:
    """A ViT with random weights: "small" (38 M parameters), "base" (303 M) or "large" (630 M).

    Args:
        model_size: one of the three.
        img_size: see `Qwen3VisionTransformer`.
        patch_size: see `Qwen3VisionTransformer`.
        **arguments: others of `Qwen3VisionTransformer`.

    Raises:
        ValueError: an unknown size.
    """
    if model_size not in SIZES:
        raise ValueError(f"model_size: expected one of {', '.join(SIZES)}, got {model_size!r}")
    width, depth, heads = SIZES[model_size]
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads}
    return Qwen3VisionTransformer(img_size, patch_size, **sizes | arguments)
