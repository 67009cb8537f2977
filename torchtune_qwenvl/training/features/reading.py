"""What data workers do with a cache: look up each image and clip, and decode only what is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchtune_qwenvl.training.features.keys import file_state, key_of, settings_digest
from torchtune_qwenvl.training.features.store import FeatureStore, StorePlace
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from torchtune_qwenvl.transforms.media_planner import PlannedMedia, read_media
from torchtune_qwenvl.transforms.videos.video_transform import VideoTransform


class MediaReader:
    """Takes the place of `read_media` in a transform. Before `open` it does the same.

    Args:
        image, video: the transform's, whose settings are part of a key.
    """

    def __init__(self, image: ImageTransform, video: VideoTransform) -> None:
        self._settings = {True: settings_digest(image), False: settings_digest(video)}
        self._place: StorePlace | None = None
        self._store: FeatureStore | None = None
        self._merge = 1

    def open(self, place: StorePlace, merge: int) -> FeatureStore:
        """From now on look media up; returns the store.

        Args:
            place: of the store.
            merge: side of the block of patches that becomes one token.
        """
        self._place, self._merge = place, merge
        self._store = FeatureStore(place)
        return self._store

    def __getstate__(self) -> dict[str, Any]:
        """What goes to a worker that is no fork of this process; it opens the store itself."""
        return {**vars(self), "_store": None}

    def __call__(self, media: Sequence[PlannedMedia]) -> dict[str, Any]:
        """The entry `encoder_input["vision"]` of a sample, see `data/kept_features.py`.

        Of an image or video that is known, `images` has a tensor [n, 0]: as many patches as it would have.
        """
        if self._place is None:
            return read_media(media)
        store = self._store = self._store or FeatureStore(self._place)
        grids = [one.transform.grid(one.plan) for one in media]
        read = [self._read(one, math.prod(grid), store) for one, grid in zip(media, grids, strict=True)]
        return {
            "images": [patches for patches, _, _ in read],
            "grid_thw": torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
            "features": [features for _, features, _ in read],
            "keys": [key for _, _, key in read],
        }

    def _read(
        self, medium: PlannedMedia, patches: int, store: FeatureStore
    ) -> tuple[Tensor, Tensor | None, str]:
        """Patches, features and key of an image or video."""
        before = file_state(medium.source)
        key = key_of(medium, self._settings[isinstance(medium.transform, ImageTransform)])
        features = store.get(key, patches // self._merge**2)
        if features is not None:
            return torch.empty(patches, 0, dtype=torch.uint8), features, key.hex()
        pixels, _ = medium.patches()
        # A file that was replaced between the two reads: what was decoded is not what the key says.
        return pixels, None, key.hex() if file_state(medium.source) == before else ""
