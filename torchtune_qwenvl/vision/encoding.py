"""What a call of the pipeline asks of the encoder, and one batch through it.

b images; n_i tokens of image i; d their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from torchtune_qwenvl.modules.vision.features import (
    POOLS,
    LayerFeatures,
    check_pool,
    layer_indexes,
    pool_tokens,
    split_images,
    to_map,
)
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer
from torchtune_qwenvl.vision.features import Features, Grid

Pool = Literal["mean", "max", "cls"] | nn.Module | None


class Wanted(NamedTuple):
    """A request that fits the encoder.

    Attributes:
        layers: indexes of layers, from 0.
        output: the encoder's output is wanted, not that of a layer.
        merged: tokens after the merger, not patches.
        pool: see `VisionPipeline.forward`.
    """

    layers: list[int]
    output: bool
    merged: bool
    pool: Pool


def read_request(
    encoder: VisionTransformer, layers: int | Sequence[int] | None, at: str | None, pool: Pool
) -> Wanted:
    """Check `layers`, `at` and `pool` of a call of the pipeline.

    Raises:
        ValueError: an unknown layer, place or pooling, or a pooling that the encoder does not have.
    """
    if at not in (None, "merged", "patches"):
        raise ValueError(f'at: expected "merged" or "patches", got {at!r}')
    if isinstance(pool, str):
        check_pool(pool, has_cls=encoder.cls_token is not None)
    elif pool is not None and not isinstance(pool, nn.Module):
        raise ValueError(f"pool: expected one of {', '.join(POOLS)}, a module or None, got {pool!r}")
    merged = at == "merged" or (at is None and layers is None)
    if layers is None:
        return Wanted([encoder.depth - 1], True, merged, pool)
    named = [layers] if isinstance(layers, int) else list(layers)
    return Wanted(layer_indexes(named, encoder.depth), False, merged, pool)


def encode_batch(
    encoder: VisionTransformer, pixels: Tensor, grids: Sequence[Grid], wanted: Wanted
) -> Features:
    """Features of the images of one batch.

    Args:
        encoder: the encoder.
        pixels: patches of all images, on the encoder's device.
        grids: (t, h, w) of each image, in patches.
        wanted: see `read_request`.
    """
    kept = encoder.features(
        pixels,
        grids,
        set(wanted.layers),
        merged=wanted.merged and not wanted.output,
        norm=wanted.output,
    )
    found = {index: _of_layer(kept, index, encoder.merge, wanted) for index in wanted.layers}
    last = found[wanted.layers[-1]]
    if wanted.output:
        return last
    names = ("tokens", "grids", "pooled", "deepstack", "cls", "output")
    return Features(**{name: getattr(last, name) for name in names}, layers=found)


def _of_layer(kept: LayerFeatures, index: int, merge: int, wanted: Wanted) -> Features:
    side = merge if wanted.merged else 1
    if wanted.merged:
        flat = kept.tokens if wanted.output else kept.merged[index]
        assert flat is not None
        tokens = list(split_images(flat, kept.grids, merge))
    else:
        split = split_images(kept.patches[index], kept.grids, 1)
        tokens = [
            to_map(each, grid, merge).flatten(0, 2) for each, grid in zip(split, kept.grids, strict=True)
        ]
    cls = list(kept.cls[index].split([t for t, _, _ in kept.grids])) if kept.cls else []
    return Features(
        tokens=tokens,
        grids=[(t, h // side, w // side) for t, h, w in kept.grids],
        pooled=_pooled(tokens, wanted.pool, cls),
        deepstack=[list(split_images(each, kept.grids, merge)) for each in kept.deepstack],
        cls=cls,
        output=() if kept.tokens is None else list(split_images(kept.tokens, kept.grids, merge)),
    )


def _pooled(tokens: list[Tensor], pool: Pool, cls: list[Tensor]) -> Tensor | None:
    if pool is None:
        return None
    if isinstance(pool, nn.Module):
        return torch.stack([pool(image) for image in tokens])
    return pool_tokens(tokens, pool, cls or None)
