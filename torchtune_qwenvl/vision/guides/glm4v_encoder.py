"""GLM-4.1V's vision encoder alone, under the names of a "GLM4V standalone vision encoder" guide.

    config, model, processor = create_glm4v_vision_encoder()
    inputs = processor(images=[image], return_tensors="pt")
    embeddings = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])

n patches of all images together, p patch side, T frames per patch, w width of the output.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchtune.utils import get_logger

from torchtune_qwenvl.checkpoints.vision_encoder import read_original_state, write_original_folder
from torchtune_qwenvl.models.glm4v import glm4v_vision_encoder
from torchtune_qwenvl.models.glm4v._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.models.glm4v._weights import GLM4V_WEIGHTS
from torchtune_qwenvl.modules.vision.features import split_images

log = get_logger("INFO")
debug = logging.getLogger(__name__).debug


@dataclass
class VisionConfig:
    """Sizes of the encoder. The released model has `temporal_patch_size=2`, all else is its.

    Args:
        depth: number of layers.
        hidden_size: width of the layers.
        num_heads: attention heads.
        patch_size: p.
        image_size: sizes the table of positions alone, image_size // patch_size on each side; images of all
            sizes are taken. `VisionProcessor(max_pixels=…)` limits them.
        spatial_merge_size: patches per side of a visual token.
        temporal_patch_size: T.
        out_hidden_size: w, also the hidden width of the layers' MLPs.
        intermediate_size: hidden width of the merger's MLP.
        attention_dropout: 0.0, nothing else.
        hidden_act: "silu", nothing else.
        rms_norm_eps: of every RMSNorm.
        in_channels: channels of an image.
        attention_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: a dropout or activation that the encoder does not have.
    """

    depth: int = 24
    hidden_size: int = 1536
    num_heads: int = 12
    patch_size: int = 14
    image_size: int = 336
    spatial_merge_size: int = 2
    temporal_patch_size: int = 1
    out_hidden_size: int = 4096
    intermediate_size: int = 13696
    attention_dropout: float = 0.0
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    in_channels: int = 3
    attention_bias: bool = False

    def __post_init__(self) -> None:
        if self.attention_dropout:
            raise ValueError(
                f"attention_dropout: GLM-4.1V has none, expected 0.0, got {self.attention_dropout}"
            )
        if self.hidden_act != "silu":
            raise ValueError(f'hidden_act: GLM-4.1V has "silu", got {self.hidden_act!r}')

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> VisionConfig:
        """The sizes in a parsed config.json, of the encoder alone or of a whole model; other entries are left
        out."""
        vision = config.get("vision_config", config)
        names = cls.__dataclass_fields__
        return cls(**{name: value for name, value in vision.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        """config.json of the encoder alone, as transformers reads it."""
        return {"model_type": "glm4v_vision", **asdict(self)}


class VisionModel(nn.Module):
    """The encoder with random weights; `from_pretrained` loads them.

    Args:
        config: its sizes; None: `VisionConfig()`.

    Attributes:
        stills_only: whether a kernel for two frames was summed into one, so that clips are refused.
    """

    def __init__(self, config: VisionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VisionConfig()
        self.encoder = glm4v_vision_encoder(
            depth=config.depth,
            width=config.hidden_size,
            num_heads=config.num_heads,
            inner_width=config.intermediate_size,
            out_width=config.out_hidden_size,
            patch_size=config.patch_size,
            temporal_patch_size=config.temporal_patch_size,
            in_channels=config.in_channels,
            merge_size=config.spatial_merge_size,
            table_side=config.image_size // config.patch_size,
            norm_eps=config.rms_norm_eps,
            qkv_bias=config.attention_bias,
            image_mean=IMAGE_MEAN if config.in_channels == 3 else None,
            image_std=IMAGE_STD if config.in_channels == 3 else None,
        )
        self.stills_only = False

    def forward(self, pixel_values: Tensor, grid_thw: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Patches [n, c·T·p·p] and grids [m, 3] -> visual tokens [n / merge^2, w] of all images."""
        return self.encoder(pixel_values, grid_thw)

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> list[Tensor]:
        """Visual tokens of each image, [n_i / merge^2, w].

        Args:
            pixel_values: [n, c·T·p·p], of `VisionProcessor`.
            image_grid_thw: int64 [images, 3], frames, rows and columns of patches.
        """
        started = time.perf_counter()
        grids = [(int(t), int(h), int(w)) for t, h, w in image_grid_thw]
        tokens = self(pixel_values, grids)
        debug(
            f"encoded {len(pixel_values)} patches of grids {grids} in {time.perf_counter() - started:.3f} s"
        )
        return list(split_images(tokens, grids, self.config.spatial_merge_size))

    def get_video_features(self, pixel_values_videos: Tensor, video_grid_thw: Tensor) -> list[Tensor]:
        """Visual tokens of each clip, frame by frame; arguments as in `get_image_features`.

        Raises:
            ValueError: weights for stills only, see `load_state_dict`.
        """
        if self.stills_only:
            raise ValueError(
                "these weights are for patches of 2 frames, summed for single ones, which is exact for "
                "stills only: build the model with VisionConfig(temporal_patch_size=2) to encode clips"
            )
        return self.get_image_features(pixel_values_videos, video_grid_thw)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load our parameters, or those of the original: `original.visual.state_dict()` of transformers'
        model.

        A kernel for two frames is summed over time where this model has patches of one frame: the same for
            stills,
        and clips are refused from then on.

        Args:
            state_dict: parameters by name.
            strict: see `torch.nn.Module.load_state_dict`.
            assign: see `torch.nn.Module.load_state_dict`.
        """
        if not state_dict.keys() & dict(self.named_parameters()).keys():
            ours = GLM4V_WEIGHTS.of_encoder(self._stills(state_dict))
            state_dict = {f"encoder.{name}": weight for name, weight in ours.items()}
        return super().load_state_dict(state_dict, strict, assign)

    def _stills(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The kernel [d, c, 2, p, p] summed over time, if this model takes single frames."""
        state = dict(state)
        for name, weight in state.items():
            is_kernel = name.endswith("patch_embed.proj.weight") and weight.ndim == 5
            if is_kernel and weight.shape[2] > 1 and self.config.temporal_patch_size == 1:
                state[name] = weight.float().sum(2, keepdim=True).to(weight.dtype)
                self.stills_only = True
        return state

    def save_pretrained(self, path: str | Path) -> Path:
        """Write a folder that `from_pretrained`, `load_vision_encoder` and transformers' `AutoModel` load."""
        config = self.config
        kernel = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        block = (config.spatial_merge_size, config.spatial_merge_size)
        shapes = {
            "patch_embed.proj.weight": (config.hidden_size, *kernel),
            "downsample.weight": (config.out_hidden_size, config.hidden_size, *block),
        }
        return write_original_folder(self.encoder, path, config.to_dict(), GLM4V_WEIGHTS, shapes)

    @classmethod
    def from_pretrained(cls, path: str | Path, **changes: Any) -> VisionModel:
        """Load the encoder of a whole GLM-4.1V folder, or a folder of the encoder alone.

        Args:
            path: the folder.
            **changes: entries of `VisionConfig` instead of the folder's, such as `temporal_patch_size=1`.
        """
        config, state = read_original_state(path)
        sizes = asdict(VisionConfig.from_dict(config)) | changes
        model = cls(VisionConfig(**sizes))
        model.load_state_dict(state)
        return model.eval()
