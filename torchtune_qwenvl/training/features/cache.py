"""A frozen encoder's features are computed once: `cache_features: true`.

    data worker     medium ─> key ─> in the store? ── yes ─> features
                                          └───────── no ──> decoded patches
    this process    known features ──────────────────┬──> the model, without its encoder
                    patches ─> encoder ─> bf16 ──────┘
                                            └─> the store

An image or clip that was encoded before, in this run or another, is neither decoded nor encoded again. All
features are rounded to bf16 and each medium is encoded by itself, so that the loss is the same to the last
bit whether features come from the store or from the encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchtune.utils import get_logger

from torchtune_qwenvl.data.kept_features import KNOWN, grids_to_encode, has_features
from torchtune_qwenvl.data.samples import SkippedSample
from torchtune_qwenvl.data.streams.dataset import in_order
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.features.encoder import (
    Autocast,
    check_frozen,
    encode,
    fingerprint,
    probe_patches,
)
from torchtune_qwenvl.training.features.reading import MediaReader
from torchtune_qwenvl.training.features.store import StorePlace
from torchtune_qwenvl.transforms.vision_language import VisionLanguageTransform

log = get_logger("INFO")

_LOOKED_AT = 4  # samples that are read twice at the start


class FeatureCache:
    """What a recipe asks of the cache. With `cache_features: false`, and in a dry run, it does nothing.

    Args:
        cfg: the resolved config.
        transform: the run's.
        world: this process's place.
        autocast: returns the context for forward passes.

    Attributes:
        transform: for the datasets; it looks media up once the cache is open.
        encoded, known: how many media the encoder had to see so far, and how many it did not.

    Raises:
        ValueError: the transform is none of this package.
    """

    def __init__(self, cfg: DictConfig, transform: Any, world: World, autocast: Autocast) -> None:
        self.enabled = cfg.cache_features and not cfg.dry_run
        self.transform = transform
        self.encoded = self.known = 0
        self._cfg, self._world, self._autocast = cfg, world, autocast
        if not self.enabled:
            return
        if not isinstance(transform, VisionLanguageTransform):
            raise ValueError(
                f"cache_features: expected a transform of this package, got {type(transform).__qualname__}, "
                "whose images cannot be looked up: set cache_features=false"
            )
        self._reader = MediaReader(transform.image_transform, transform.video_transform)
        self._image_transform = transform.image_transform
        self.transform = copy.copy(transform)
        self.transform.read_media = self._reader

    def whole(self, model: VisionLanguageModel) -> nn.Module | None:
        """The part of the model that every rank keeps whole, so that it can encode when others do not.

        Raises:
            ValueError: encoder or mergers are not frozen.
        """
        if not self._cfg.cache_features:
            return None
        check_frozen(model)
        return model.vision_encoder

    def open(self, model: VisionLanguageModel, dataset: Dataset) -> None:
        """Begin to look media up; what was read before is as without a cache. All ranks must call.

        Args:
            model: with its weights.
            dataset: of training.

        Raises:
            ValueError: the folder cannot be written, or pixels are changed at random.
        """
        if not self.enabled:
            return
        self._encoder = model.vision_encoder
        with self._world.together():
            probed = self._encode(*probe_patches(self._image_transform))
            name = fingerprint(model, self._settings(), lambda: probed)
            parts, width = self._shape = probed.shape[1:]
            limit = int(self._cfg.feature_cache_gib * 2**30)
            place = StorePlace(Path(self._cfg.feature_cache_dir), name[:32], parts, width, limit)
            self._store = self._reader.open(place, self._encoder.merge)
            check_repeatable(dataset, self._cfg)
        if self._world.is_main:
            log.info(f"features of {len(self._store)} images and videos are known: {self._store.folder}")

    def complete(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The model's arguments with all features; encodes and stores those that are missing.

        Args:
            inputs: what collate returns, on the host.
        """
        vision = (inputs.get("encoder_input") or {}).get("vision")
        if not self.enabled or vision is None:
            return inputs
        if len(vision["pixel_values"]):  # of samples that another transform has made
            return inputs
        if has_features(vision) and len(vision["media"]):
            features = self._all_features(vision)
        else:
            features = torch.empty(0, *self._shape, dtype=torch.bfloat16)
        features = features.to(self._world.device, non_blocking=True)
        return {**inputs, "encoder_input": {"vision": {"features": features}}}

    def close(self) -> None:
        """Write what is left to disk, and say how often the encoder was spared."""
        if not self.enabled:
            return
        self._store.close()
        if self._world.is_main:
            log.info(f"features: {self.encoded} images and videos were encoded here, {self.known} were known")

    def _all_features(self, vision: Mapping[str, Any]) -> Tensor:
        media, known = vision["media"].tolist(), vision[KNOWN]
        self.known += media.count(-1)
        if not vision["pixels"]:
            return known
        pixels = vision["pixels"].values()
        new = [
            self._encode(patches, grid) for patches, grid in zip(pixels, grids_to_encode(vision), strict=True)
        ]
        self.encoded += len(new)
        for key, features in zip(vision["pixels"], new, strict=True):
            self._keep(key, features)
        sizes = [int(grid.prod()) // self._encoder.merge**2 for grid in vision["grid_thw"]]
        lengths = [size for size, place in zip(sizes, media, strict=True) if place < 0]
        parts = iter(known.to(self._world.device, non_blocking=True).split(lengths) if lengths else ())
        return torch.cat([next(parts) if place < 0 else new[place] for place in media])

    def _encode(self, pixels: Tensor, grid: tuple[int, int, int] | list[int]) -> Tensor:
        return encode(self._encoder, pixels, grid, self._world.device, self._autocast)

    def _keep(self, key: str, features: Tensor) -> None:
        """Store features under their name, if they have one and are numbers."""
        try:
            name = bytes.fromhex(key)
        except ValueError:
            return
        on_host = features.cpu()
        if on_host.isfinite().all():
            self._store.put(name, on_host)

    def _settings(self) -> dict[str, Any]:
        """What decides the last bits of features, next to the encoder itself."""
        device = self._world.device
        cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()
        keys = ("dtype", "compile", "attention_backend")
        return {"device": name, **{key: self._cfg[key] for key in keys}}


def check_repeatable(dataset: Dataset, cfg: DictConfig) -> None:
    """Read the first samples twice, and compare their images and videos.

    Args:
        dataset: whose transform looks media up.
        cfg: with the policies for bad samples.

    Raises:
        ValueError: they differ, since the dataset changes pixels at random.
    """

    def keys() -> list[list[str]]:
        samples = islice(in_order(dataset, cfg.on_bad_sample, cfg.on_too_long), _LOOKED_AT)
        kept = (sample for sample in samples if not isinstance(sample, SkippedSample))
        visions = [(sample.get("encoder_input") or {}).get("vision", {}) for sample in kept]
        return [vision.get("keys", []) for vision in visions]

    if keys() != keys():
        raise ValueError(
            "cache_features: the dataset gives other pixels each time its first samples are read. Features "
            "of pixels that are changed at random cannot be kept: leave the random changes out, or set "
            "cache_features=false"
        )
