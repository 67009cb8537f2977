"""Joins samples whose images and videos an encoder need not see, since its features of them are kept.

Such a sample has in `encoder_input["vision"]`, next to `images` and `grid_thw`, one entry per image or video:

    features    bf16 [tokens, parts, width], or None where the encoder still has to run
    keys        the name under which these features are to be kept; "" if they are not

What the encoder does not know yet goes to the training process as pixels, which completes the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

FEATURES, KNOWN = "features", "known"


def has_features(vision: Mapping[str, Any]) -> bool:
    """Whether the entry `vision` of a sample, or of a batch that `join_features` made, knows of features."""
    return FEATURES in vision or KNOWN in vision


def join_features(visions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry `encoder_input["vision"]` of a batch; it has to be completed before the model gets it.

    Args:
        visions: of the samples with images or videos, some of them perhaps without features.

    Returns:
        - ``grid_thw`` int64 [m, 3] of all images and videos, in the order of the text.
        - ``known`` bf16 [v, parts, width] of those that are known, one after the other; [0, 0, 0] without.
        - ``media`` int64 [m]: -1 for a known one, else its place among ``pixels``.
        - ``pixels`` {key: patches [n, values per patch]} of the others, each once.
        - ``pixel_values`` [0, 0]: the model itself gets no pixels.
    """
    known: list[Tensor] = []
    pixels: dict[str, Tensor] = {}
    media: list[int] = []
    places: dict[str, int] = {}
    for vision in visions:
        nothing = [None] * len(vision["images"])
        keys = vision.get("keys", [""] * len(nothing))
        for patches, features, key in zip(vision["images"], vision.get(FEATURES, nothing), keys, strict=True):
            if features is not None:
                known.append(features)
                media.append(-1)
                continue
            name = key or f"not kept {len(pixels)}"
            media.append(places.setdefault(name, len(places)))
            pixels.setdefault(name, patches)
    grids = [torch.as_tensor(vision["grid_thw"], dtype=torch.int64).reshape(-1, 3) for vision in visions]
    return {
        "grid_thw": torch.cat(grids),
        "pixel_values": torch.empty(0, 0),
        KNOWN: torch.cat(known) if known else torch.empty(0, 0, 0, dtype=torch.bfloat16),
        "media": torch.tensor(media, dtype=torch.int64),
        "pixels": pixels,
    }


def grids_to_encode(vision: Mapping[str, Any]) -> list[list[int]]:
    """(t, h, w) in patches of each image and video of a batch that the encoder will see, each once."""
    grids = vision["grid_thw"].tolist()
    if "media" not in vision:
        return grids
    media = vision["media"].tolist()
    return [grids[media.index(place)] for place in range(len(vision["pixels"]))]
