"""A frozen encoder as a function of one image or clip, and the fingerprint by which its features are kept.

Each image or clip is encoded by itself. In a batch, kernels may round its features differently, depending on
what else is in it; so the features would depend on the order of samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from torchtune_qwenvl.modules.adapters.lora import is_adapter
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer, VisualFeatures
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform

# Their releases decide what is decoded, and the last bits of what is computed.
_PACKAGES = ("torchtune_qwenvl", "torch", "torchvision", "pillow", "av")
_PROBE = (72, 104)  # pixels; smaller than any picture that is worth a cache
_TRIES = 8  # a flip with a probability of one half comes out eight times alike in 1 of 128 starts

Autocast = Callable[[], AbstractContextManager]


def check_frozen(model: VisionLanguageModel) -> None:
    """Check that nothing changes the encoder's output.

    Raises:
        ValueError: a weight of encoder or mergers trains, or there is LoRA on one.
    """
    for name, parameter in model.vision_encoder.named_parameters():
        if parameter.requires_grad or is_adapter(name):
            what = "there is LoRA on it" if is_adapter(name) else "it trains"
            raise ValueError(
                "cache_features keeps what a frozen encoder computes, but vision_encoder."
                f"{name} is not frozen ({what}): set model.encoder_trainable=frozen and "
                "model.fusion_trainable=frozen, or cache_features=false"
            )


@torch.no_grad()
def encode(
    encoder: VisionTransformer, pixels: Tensor, grid: Sequence[int], device: torch.device, autocast: Autocast
) -> Tensor:
    """The features of one image or clip, bf16 [tokens, parts, width] on the device.

    Args:
        encoder: not sharded.
        pixels: its patches [n, values per patch].
        grid: (t, h, w) in patches.
        device: of the encoder.
        autocast: returns the context for forward passes.
    """
    with autocast():
        found = encoder(pixels.to(device, non_blocking=True), [list(grid)], return_deepstack=True)
    assert isinstance(found, VisualFeatures)
    return torch.stack([found.tokens, *found.deepstack], dim=1).to(torch.bfloat16)


def fingerprint(model: VisionLanguageModel, settings: Mapping[str, Any], probe: Callable[[], Tensor]) -> str:
    """Digest of all that decides an encoder's features of given media: 64 hexadecimal digits.

    Args:
        model: whose encoder it is.
        settings: of the run: device, dtype and the like.
        probe: features of a made-up picture. They show differences that nothing else here names, such as
            another kernel.
    """
    vision = model.config.get("vision_config", model.config)
    found = hashlib.sha256(json.dumps([vision, _versions(), settings], sort_keys=True, default=str).encode())
    for name, weight in sorted(model.vision_encoder.state_dict().items()):
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        found.update(_bytes(weight))
    found.update(_bytes(probe()))
    return found.hexdigest()


def probe_patches(transform: ImageTransform) -> tuple[Tensor, tuple[int, int, int]]:
    """Patches and grid of a made-up picture, by a transform that has to give the same ones each time.

    Raises:
        ValueError: it does not, since it changes pixels at random.
    """
    seed = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, *_PROBE), dtype=torch.uint8, generator=seed)
    side = 4 * transform.patch_size * transform.merge_size

    def cut() -> tuple[Tensor, tuple[int, int, int]]:
        plan = transform.plan(
            picture, resized_height=side, resized_width=side, min_pixels=1, max_pixels=2 * side**2
        )
        return transform.patches(plan)

    patches, grid = cut()
    if not all(torch.equal(patches, cut()[0]) for _ in range(_TRIES - 1)):
        raise ValueError(
            f"cache_features: {type(transform).__qualname__} gives other pixels each time for one picture. "
            "Features of pixels that are changed at random cannot be kept: leave the random changes out, or "
            "set cache_features=false"
        )
    return patches, grid


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found
