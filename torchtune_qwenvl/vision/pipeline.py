"""Images in, visual tokens out: an encoder, and how its images are read.

    images ─> VisionInputs ─> patches, grids ─> encoder ─> Features

b images; n_i tokens of image i; d their width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchtune_qwenvl.checkpoints.vision_encoder import load_vision_encoder
from torchtune_qwenvl.models import vit as presets
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer
from torchtune_qwenvl.vision.batches import by_tokens, join_patches
from torchtune_qwenvl.vision.encoding import Pool, Wanted, encode_batch, read_request
from torchtune_qwenvl.vision.features import Features, Grid, joined
from torchtune_qwenvl.vision.inputs import VisionInputs
from torchtune_qwenvl.vision.media import media_transforms, plain_transform
from torchtune_qwenvl.vision.stream import OnBad, Stream

BATCH_TOKENS = 16384
BUILDERS: dict[str, Callable[..., VisionTransformer]] = {
    name: getattr(presets, name) for name in ("vit_small", "vit_base", "vit_large", "classic_vit")
}


class VisionPipeline(nn.Module):
    """Images and clips to tokens. It starts in eval mode and keeps no graph; after `.train()` gradients flow.

    Args:
        encoder: a vision encoder.
        inputs: how its images and clips are read.
        batch_tokens: most patches that go through the encoder at once, one image at least.

    Example:
        >>> pipeline = VisionPipeline.from_checkpoint("Qwen3-VL-2B-Instruct", max_pixels=512 * 512)
        >>> features = pipeline(["cat.jpg", "dog.png"], pool="mean")
        >>> features.tokens[0].shape, features.map(0).shape, features.pooled.shape
    """

    def __init__(
        self, encoder: VisionTransformer, inputs: VisionInputs, *, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        super().__init__()
        self.encoder, self.inputs, self.batch_tokens = encoder, inputs, batch_tokens
        self.eval()

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        size: tuple[int, int] | None = None,
        tokens: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        **builder_arguments: Any,
    ) -> VisionPipeline:
        """A pipeline around the vision encoder of a checkpoint folder.

        Args:
            folder: a whole checkpoint, of which only the vision shards need to be there, or an encoder's own.
            dtype: of the weights; None: the files'.
            device: where the encoder goes; None: the CPU.
            min_pixels: fewest pixels of a resized image; None: the folder's.
            max_pixels: the most; None: the folder's, which may be 16,000 tokens.
            size: see `VisionInputs`.
            tokens: see `VisionInputs`.
            batch_tokens: see the class.
            **builder_arguments: see `load_vision_encoder`.

        Raises:
            ValueError: see `load_vision_encoder`.
        """
        encoder = load_vision_encoder(folder, dtype, device or "cpu", **builder_arguments)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        images, videos = media_transforms(folder, encoder, **limits)
        inputs = VisionInputs(images, videos, size=size, tokens=tokens, channels=encoder.patch_embed.channels)
        return cls(encoder, inputs, batch_tokens=batch_tokens)

    @classmethod
    def from_builder(
        cls,
        builder: str | Callable[..., VisionTransformer],
        *,
        img_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        **arguments: Any,
    ) -> VisionPipeline:
        """A pipeline around a new encoder with random weights.

        Args:
            builder: "vit_small", "vit_base", "vit_large", "classic_vit", or a function that makes an encoder.
            img_size: every image is stretched to this height and width; None: native sizes.
            in_channels: channels of an image.
            dtype: of the weights; None: float32.
            device: where the encoder goes; None: the CPU.
            batch_tokens: see the class.
            **arguments: of the builder.

        Raises:
            ValueError: an unknown builder.
        """
        if isinstance(builder, str):
            if builder not in BUILDERS:
                raise ValueError(f"no builder called {builder!r}, expected one of {', '.join(BUILDERS)}")
            builder = BUILDERS[builder]
        encoder = builder(in_channels=in_channels, **arguments)
        images = plain_transform(encoder)
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        inputs = VisionInputs(images, size=size, channels=in_channels)
        return cls(encoder.to(device, dtype), inputs, batch_tokens=batch_tokens)

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.patch_embed.weight.device

    def forward(
        self,
        images: Any = (),
        *,
        videos: Any = (),
        layers: int | Sequence[int] | None = None,
        at: Literal["merged", "patches"] | None = None,
        pool: Pool = None,
    ) -> Features:
        """Tokens of images and clips.

        Args:
            images: one image or a list of them: path, bytes, PIL image, numpy array or tensor.
            videos: one clip or a list of them: path, bytes, or a list of frames. They come after the images.
            layers: None for the encoder's output; an index of a layer (-1 is the last) or a list of them.
            at: "merged" for visual tokens, after the merger; "patches" for patches before it. Default:
                "merged", for a layer "patches".
            pool: also give one vector per image: "mean", "max", "cls", or a module that takes [n_i, d] and
                gives one vector.

        Raises:
            ValueError: no image at all, a bad image (it is named), an unknown layer, or a pooling that the
                encoder does not have.
        """
        batch = [self.inputs.read_image(image) for image in as_list(images)]
        batch += [self.inputs.read_video(video) for video in as_list(videos)]
        return self.encode(batch, layers=layers, at=at, pool=pool)

    def encode(
        self,
        batch: Sequence[tuple[Tensor, Grid]],
        *,
        layers: int | Sequence[int] | None = None,
        at: Literal["merged", "patches"] | None = None,
        pool: Pool = None,
    ) -> Features:
        """The same for patches and grids that `VisionInputs` has read."""
        if not batch:
            raise ValueError("expected at least one image or video, got none")
        wanted = read_request(self.encoder, layers, at, pool)
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            parts = [
                self._encode(part, wanted)
                for part in by_tokens(batch, self.batch_tokens, lambda item: len(item[0]))
            ]
        return joined(parts)

    def stream(
        self,
        paths: Iterable[Any],
        *,
        batch_tokens: int | None = None,
        workers: int = 2,
        on_bad: OnBad = "raise",
        **options: Any,
    ) -> Stream:
        """Features of many images, batch by batch and in their order, in constant memory.

        Args:
            paths: images; paths are the cheapest to send to workers.
            batch_tokens: most patches of a batch; None: the pipeline's.
            workers: processes that decode; 0 decodes here.
            on_bad: "raise" stops at the first bad image; "skip" leaves it out and lists it in `.failed`.
            **options: `layers`, `at`, `pool` of a call.
        """
        encode = partial(self.encode, **options)
        return Stream(self.inputs, encode, list(paths), batch_tokens or self.batch_tokens, workers, on_bad)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the encoder's weights and of all settings of its inputs: equal ones give equal
        tokens."""
        found = hashlib.sha256(json.dumps(self.inputs.settings(), sort_keys=True).encode())
        for name, weight in sorted(self.encoder.state_dict().items()):
            found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            found.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()

    def _encode(self, batch: Sequence[tuple[Tensor, Grid]], wanted: Wanted) -> Features:
        pixels = join_patches([patches for patches, _ in batch], self.inputs.channels)
        pixels = pixels.to(self.device, non_blocking=True)
        return encode_batch(self.encoder, pixels, [grid for _, grid in batch], wanted)


def as_list(given: Any) -> list[Any]:
    """One image, or several, as a list."""
    return list(given) if isinstance(given, list | tuple) else [given]
