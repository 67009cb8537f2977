"""The toy model: rules for its config.json, the encoder, builders and the names of its weights.

Its own part is the merger: a visual token is the mean of a block of patches, projected to the decoder's
width.
n patches, m merge size, d encoder width, w decoder width.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models import ConfigRules, Slots, VisionShape, WeightTable, towers, weight_rows
from torchtune_qwenvl.models.build import config_builder, published_sizes
from torchtune_qwenvl.models.hf_config import VISION, normalise_config, normalise_vision
from torchtune_qwenvl.models.parts import two_linears
from torchtune_qwenvl.models.qwen2_5_vl import qwen2_5_vl_decoder
from torchtune_qwenvl.modules.adapters.lora import Adapter, make_linear
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer

RULES = ConfigRules(top=(), vision=VISION, vision_activation="gelu")
IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)


class MeanMerger(nn.Module):
    """Mean of each m x m block of patches, then a linear layer: [n, d] -> [n / m^2, w].

    The linear is called `w1` because LoRA goes by torchtune's names.
    """

    def __init__(self, width: int, out_width: int, merge: int, adapter: Adapter | None) -> None:
        super().__init__()
        self.block = merge * merge
        self.w1 = make_linear("w1", width, out_width, bias=True, adapter=adapter)

    def forward(self, x: Tensor) -> Tensor:
        """Patches come in merge-block order: the m * m of a block follow each other."""
        return self.w1(x.unflatten(0, (-1, self.block)).mean(1))


@takes_arguments_of(VisionShape)
def toy_vl_vision_encoder(**sizes: Any) -> VisionTransformer:
    """A ViT with LayerNorm, GELU and a mean over each block: pixels, grids -> visual tokens."""
    shape = VisionShape(**sizes)
    width, inner = shape.width, shape.inner_width
    return towers.vision_encoder(
        shape,
        norm=partial(nn.LayerNorm, eps=1e-6),
        mlp=lambda: two_linears(width, inner, width, activation=nn.GELU(), adapter=shape.adapter),
        merger=MeanMerger(width, shape.out_width, shape.merge_size, shape.merger_adapter),
    )


SLOTS = Slots(
    normalise=partial(normalise_config, rules=RULES),
    normalise_vision=partial(normalise_vision, rules=RULES),
    vision_encoder=toy_vl_vision_encoder,
    decoder=qwen2_5_vl_decoder,
)
toy_vl_from_config = config_builder(
    SLOTS, "toy_vl_from_config", "A toy model of the size that a config.json describes.", module=__name__
)


def published_config(size: str) -> dict[str, Any]:
    """What config.json says; there is one size, "tiny"."""
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"hidden_size": 32, "depth": 2, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
    return {
        "model_type": "toy_vl",
        "image_token_id": 262,
        "video_token_id": 263,
        "tie_word_embeddings": False,
        "text_config": {
            **text,
            "intermediate_size": 128,
            "vocab_size": 264,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            **vision,
            "hidden_act": "gelu",
            "patch_size": 8,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
    }


_size = published_sizes(toy_vl_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
toy_vl_tiny = _size("toy_vl_tiny", "tiny", "The toy model in its only size.")

_BLOCK, _LAYER = weight_rows.BLOCK, weight_rows.VISION_LAYER
WEIGHTS = WeightTable(
    rows={
        "model.visual.patch_embed.weight": "vision_encoder.patch_embed.weight",
        **weight_rows.VISION_LAYER_NORMS,
        **weight_rows.VISION_QKV,
        f"{_BLOCK}.attn.proj.{{p}}": f"{_LAYER}.attn.output_proj.{{p}}",
        f"{_BLOCK}.mlp.fc1.{{p}}": f"{_LAYER}.mlp.w1.{{p}}",
        f"{_BLOCK}.mlp.fc2.{{p}}": f"{_LAYER}.mlp.w2.{{p}}",
        "model.visual.merger.proj.{p}": "vision_encoder.merger.w1.{p}",
        **weight_rows.DECODER,
        **weight_rows.TEXT_GATE_AND_UP,
    },
    prefixes={},
    tied=weight_rows.TIED,
)
