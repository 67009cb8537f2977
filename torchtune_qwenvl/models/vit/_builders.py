"""Builders of plain vision transformers: presets of three sizes, any other size, and the classic ViT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.parts import VISION_EPS, two_linears
from torchtune_qwenvl.models.towers import VisionShape, vision_encoder
from torchtune_qwenvl.modules.adapters.lora import Adapter
from torchtune_qwenvl.modules.norm import LayerNorm
from torchtune_qwenvl.modules.vision.cls_token import ClsToken
from torchtune_qwenvl.modules.vision.learned_positions import LearnedPositions, bicubic
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer

# Of the ImageNet photographs, RGB in 0 .. 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The classic network draws its cls token and positions from the standard normal distribution.
_CLASSIC_STD = 1.0


def vit(
    *,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    patch_size: int = 14,
    in_channels: int = 3,
    position_side: int | None = None,
    dropout: float = 0.0,
    num_classes: int = 0,
    global_pool: str | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    adapter: Adapter | None = None,
) -> VisionTransformer:
    """A pre-norm ViT with rotary positions and a final norm, no cls token: pixels, grids -> [n, embed_dim].

    Args:
        embed_dim: width.
        depth: number of layers.
        num_heads: attention heads; a head's width is a multiple of 4.
        mlp_ratio: hidden width of the MLPs over `embed_dim`.
        patch_size: side of a patch in pixels.
        in_channels: channels of an image.
        position_side: rows and columns of a table of learned positions, added to the rotary ones; None: no
            table.
        dropout: share dropped in training, of embedded patches, attention weights and branches.
        num_classes: outputs of a linear head; 0: no head.
        global_pool: "mean" or "max", for the head; None: "mean".
        image_mean: per channel, in 0 .. 1; needed for uint8 pixels. Default: ImageNet's for 3 channels.
        image_std: the same.
        adapter: LoRA on the layers.
    """
    config = {
        "model_type": "vit",
        **{"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio},
        **{"patch_size": patch_size, "in_channels": in_channels, "position_side": position_side},
        **{"dropout": dropout, "num_classes": num_classes, "global_pool": global_pool},
    }
    shape = _shape(config, image_mean, image_std, adapter)
    norm = partial(LayerNorm, eps=VISION_EPS)
    table = position_side and LearnedPositions(side=position_side, width=embed_dim, stretch=bicubic)
    encoder = vision_encoder(
        shape,
        norm=norm,
        mlp=lambda: _mlp(shape, dropout),
        merger=norm(embed_dim),
        patch_bias=True,
        position_embed=table or None,
        dropout=dropout,
        config=config | _scale(shape),
    )
    encoder.reset_classifier(num_classes, global_pool)
    return encoder


def classic_vit(
    *,
    img_size: int = 32,
    patch_size: int = 4,
    in_channels: int = 3,
    embed_dim: int = 128,
    depth: int = 6,
    num_heads: int = 8,
    head_dim: int = 64,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
    num_classes: int = 0,
    global_pool: str | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    adapter: Adapter | None = None,
) -> VisionTransformer:
    """The first ViT, as many tutorials train it on CIFAR-10: cls token, learned positions, no final norm.

    Patches are normalised before and after their projection, queries, keys and values have no bias. With the
    defaults and 10 classes it has 2,383,338 parameters. Source: arXiv:2010.11929, section 3.1, with the two
    norms of lucidrains/vit-pytorch.

    Args:
        img_size: side of the images in pixels, a multiple of `patch_size`; others stretch the table of
            positions.
        patch_size: side of a patch in pixels.
        in_channels: channels of an image.
        embed_dim: width.
        depth: number of layers.
        num_heads: attention heads.
        head_dim: width of a head, which need not be `embed_dim` / `num_heads`.
        mlp_ratio: hidden width of the MLPs over `embed_dim`.
        dropout: share dropped in training, of embedded patches, attention weights, hidden values and
            branches.
        num_classes: outputs of a linear head; 0: no head.
        global_pool: "cls" or "mean", for the head; None: "cls".
        image_mean: per channel, in 0 .. 1; needed for uint8 pixels. Default: 0.5.
        image_std: the same.
        adapter: LoRA on the layers.

    Raises:
        ValueError: an image that is no whole number of patches.
    """
    if img_size % patch_size:
        raise ValueError(f"img_size {img_size} is no multiple of patch_size {patch_size}")
    config = {
        "model_type": "classic_vit",
        **{"img_size": img_size, "patch_size": patch_size, "in_channels": in_channels},
        **{"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "head_dim": head_dim},
        **{"mlp_ratio": mlp_ratio, "dropout": dropout},
        **{"num_classes": num_classes, "global_pool": global_pool},
    }
    half = [0.5] * in_channels
    shape = _shape(config, image_mean or half, image_std or half, adapter)
    table = LearnedPositions(side=img_size // patch_size, width=embed_dim, stretch=bicubic, std=_CLASSIC_STD)
    encoder = vision_encoder(
        shape,
        head_dim=head_dim,
        norm=LayerNorm,
        mlp=lambda: _mlp(shape, dropout),
        merger=nn.Identity(),
        qkv_bias=False,
        patch_bias=True,
        pixel_norm=LayerNorm(in_channels * patch_size**2),
        patch_norm=LayerNorm(embed_dim),
        rotary=False,
        position_embed=table,
        cls_token=ClsToken(embed_dim, std=_CLASSIC_STD),
        dropout=dropout,
        config=config | _scale(shape),
    )
    encoder.reset_classifier(num_classes, global_pool)
    return encoder


# model_type in config.json -> its builder.
MODEL_TYPES: dict[str, Callable[..., VisionTransformer]] = {"vit": vit, "classic_vit": classic_vit}


def vit_from_config(config: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> VisionTransformer:
    """The encoder that a saved config.json describes.

    Args:
        config: parsed config.json of a folder that `save_vision_encoder` wrote.
        changes: arguments of the builder that replace the file's; None: no changes.

    Raises:
        ValueError: a model_type that is neither "vit" nor "classic_vit".
    """
    arguments = dict(config)
    model_type = arguments.pop("model_type", None)
    if model_type not in MODEL_TYPES:
        raise ValueError(f"config.json: model_type {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
    return MODEL_TYPES[model_type](**arguments | dict(changes or {}))


@takes_arguments_of(vit, embed_dim=512, depth=12, num_heads=8)
def vit_small(**arguments: Any) -> VisionTransformer:
    """38,131,200 parameters: width 512, 12 layers, 8 heads; arguments as in `vit`."""
    return vit(**arguments)


@takes_arguments_of(vit, embed_dim=1024, depth=24, num_heads=16)
def vit_base(**arguments: Any) -> VisionTransformer:
    """302,914,560 parameters: width 1024, 24 layers, 16 heads; arguments as in `vit`."""
    return vit(**arguments)


@takes_arguments_of(vit, embed_dim=1280, depth=32, num_heads=16)
def vit_large(**arguments: Any) -> VisionTransformer:
    """630,434,560 parameters: width 1280, 32 layers, 16 heads; arguments as in `vit`."""
    return vit(**arguments)


def _shape(
    config: Mapping[str, Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    adapter: Adapter | None,
) -> VisionShape:
    if mean is None and std is None and config["in_channels"] == len(IMAGENET_MEAN):
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return VisionShape(
        depth=config["depth"],
        width=config["embed_dim"],
        num_heads=config["num_heads"],
        inner_width=int(config["embed_dim"] * config["mlp_ratio"]),
        out_width=config["embed_dim"],
        patch_size=config["patch_size"],
        temporal_patch_size=1,
        in_channels=config["in_channels"],
        merge_size=1,
        image_mean=mean,
        image_std=std,
        adapter=adapter,
    )


def _scale(shape: VisionShape) -> dict[str, Any]:
    scale = {"image_mean": shape.image_mean, "image_std": shape.image_std}
    return {name: None if values is None else list(values) for name, values in scale.items()}


def _mlp(shape: VisionShape, dropout: float) -> nn.Module:
    activation = nn.Sequential(nn.GELU(), nn.Dropout(dropout)) if dropout else nn.GELU()
    return two_linears(
        shape.width, shape.inner_width, shape.width, activation=activation, adapter=shape.adapter
    )
