"""Batches of labelled images for one rank: augmented, mixed and cut into patches by the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from torchtune_qwenvl.data.labelled.augment import Augmented, EpochSampler
from torchtune_qwenvl.data.labelled.collate import ImageCollate
from torchtune_qwenvl.data.labelled.dataset import LabelledImages
from torchtune_qwenvl.data.loader import Loader, build_loader


def build_image_loader(
    images: LabelledImages,
    transforms: Callable[[Tensor], Tensor],
    *,
    order: Mapping[str, Any],
    patches: Mapping[str, Any],
    mixing: Mapping[str, Any],
    **loading: Any,
) -> Loader:
    """A loader of one rank's share; every rank gets the same number of batches.

    Args:
        images: of all ranks.
        transforms: uint8 [c, h, w] -> pixels.
        order: arguments of `EpochSampler`.
        patches: `patch_size` and `merge_size` of `ImageCollate`.
        mixing: `mixes` and `mix_share` of `ImageCollate`.
        **loading: of `build_loader`.
    """
    seed = order["seed"]
    data = Augmented(images, transforms, seed=seed, multiple=patches["patch_size"] * patches["merge_size"])
    return build_loader(
        data,
        sampler=EpochSampler(len(data), **order),
        collate=ImageCollate(**patches, **mixing, seed=seed),
        filler={"pixels": data.example()["pixels"]},
        **loading,
    )
