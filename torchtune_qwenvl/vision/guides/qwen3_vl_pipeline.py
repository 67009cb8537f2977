"""From an image to the tokens of a plain ViT, at one size of images: `Qwen3VLPipeline` and its parts.

    image ─> ImagePreprocessor ─> [1, 3, 224, 224] ─> Qwen3VisionTransformer ─> [1, 256, d] ─>
    TokenPostprocessor

b images, n tokens in reading order, d their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchtune.utils import get_logger
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from torchtune_qwenvl.checkpoints.vision_encoder import load_vision_encoder
from torchtune_qwenvl.models.vit import IMAGENET_MEAN, IMAGENET_STD
from torchtune_qwenvl.modules.vision.features import check_pool, pool_tokens
from torchtune_qwenvl.transforms.images.decode import ImageSource, decode_image
from torchtune_qwenvl.vision.guides.qwen3_vl_vit import create_qwen3_vl_vit

log = get_logger("INFO")
PoolingStrategy = Literal["none", "mean", "max", "cls"]


class ImagePreprocessor:
    """Images of any size and kind to normalised tensors of one size.

    Args:
        img_size: side of the result in pixels; the image is stretched to it.
        mean: per channel, in 0 .. 1; ImageNet's by default.
        std: the same.
    """

    def __init__(
        self,
        img_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.img_size, self.mean, self.std = img_size, list(mean), list(std)

    def load_image(self, image: str | Path) -> Image.Image:
        """The picture of a file as RGB, upright, transparent parts white."""
        return tv.to_pil_image(decode_image(image))

    def preprocess(self, image: ImageSource) -> Tensor:
        """Path, bytes, PIL image, array or tensor -> float32 [1, 3, img_size, img_size].

        Raises:
            BadSample: a file that cannot be read, or something that is no image.
        """
        size = [self.img_size, self.img_size]
        pixels = tv.resize(decode_image(image), size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return tv.normalize(pixels.float() / 255, self.mean, self.std)[None].contiguous()

    def preprocess_batch(self, images: Sequence[ImageSource]) -> Tensor:
        """Several images -> float32 [b, 3, img_size, img_size]."""
        return torch.cat([self.preprocess(image) for image in images])


class TokenPostprocessor:
    """Pools tokens and turns them into arrays or lists.

    Args:
        pooling_strategy: "none" keeps all tokens, "mean" and "max" make one of them. There is no cls token.

    Raises:
        ValueError: another strategy; "cls" with the reason.
    """

    def __init__(self, pooling_strategy: PoolingStrategy = "none") -> None:
        if pooling_strategy != "none":
            check_pool(pooling_strategy, has_cls=False)
        self.pooling_strategy = pooling_strategy

    def __call__(self, tokens: Tensor) -> Tensor:
        """[b, n, d] -> the same, or pooled [b, 1, d]."""
        if self.pooling_strategy == "none":
            return tokens
        return pool_tokens(list(tokens), self.pooling_strategy)[:, None]

    @staticmethod
    def to_numpy(tokens: Tensor) -> np.ndarray:
        """Tokens as a float32 array."""
        return tokens.detach().float().cpu().numpy()

    @staticmethod
    def to_list(tokens: Tensor) -> list:
        """Tokens as nested lists."""
        return tokens.detach().float().tolist()


class Qwen3VLPipeline(nn.Module):
    """Images to tokens in one call. Random weights unless `pretrained_path` is given; in eval mode, without a
    graph.

    Args:
        model_size: "small", "base" or "large".
        pooling_strategy: see `TokenPostprocessor`.
        device: where the model goes; None: a GPU if there is one.
        img_size: side to which images are stretched.
        patch_size: side of a patch in pixels.
        pretrained_path: folder that `save_vision_encoder` wrote.

    Example:
        >>> pipeline = Qwen3VLPipeline(model_size="small")
        >>> pipeline.process_image("cat.jpg").shape
        torch.Size([1, 256, 512])
    """

    def __init__(
        self,
        model_size: str = "base",
        pooling_strategy: PoolingStrategy = "none",
        device: str | torch.device | None = None,
        img_size: int = 224,
        patch_size: int = 14,
        pretrained_path: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.postprocessor = TokenPostprocessor(pooling_strategy)
        self.preprocessor = ImagePreprocessor(img_size)
        self.model = create_qwen3_vl_vit(model_size, img_size, patch_size)
        self.model_size = model_size
        if pretrained_path is None:
            log.warning("the encoder has random weights: its tokens mean nothing before it is trained")
        else:
            self.model.encoder = load_vision_encoder(pretrained_path)
        self.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.encoder.patch_embed.weight.device

    def process_image(self, image: ImageSource, return_numpy: bool = False) -> Tensor | np.ndarray:
        """One image -> [1, n, d], or [1, 1, d] if pooled."""
        return self.process_batch([image], return_numpy)

    def process_batch(self, images: Sequence[ImageSource], return_numpy: bool = False) -> Tensor | np.ndarray:
        """Several images -> [b, n, d], or [b, 1, d] if pooled.

        Args:
            images: paths, bytes, PIL images, arrays or tensors.
            return_numpy: give a float32 array instead of a tensor.

        Raises:
            ValueError: no image; a bad image (it is named).
        """
        if not len(images):
            raise ValueError("expected at least one image, got none")
        batch = self.preprocessor.preprocess_batch(images).to(self.device)
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            tokens = self.postprocessor(self.model(batch))
        return self.postprocessor.to_numpy(tokens) if return_numpy else tokens

    def forward(self, images: ImageSource | Sequence[ImageSource]) -> Tensor:
        """One image or several -> tokens."""
        batch: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
        found = self.process_batch(batch)
        assert isinstance(found, Tensor)
        return found

    def get_pipeline_info(self) -> dict[str, Any]:
        """Sizes and settings, as plain values."""
        return {
            "model_size": self.model_size,
            "img_size": self.model.img_size,
            "patch_size": self.model.patch_size,
            "num_patches": self.model.get_num_patches(),
            "embed_dim": self.model.get_embed_dim(),
            "depth": self.model.encoder.depth,
            "num_parameters": sum(parameter.numel() for parameter in self.parameters()),
            "pooling_strategy": self.postprocessor.pooling_strategy,
            "device": str(self.device),
        }
