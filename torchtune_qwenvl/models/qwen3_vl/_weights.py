"""Weight names of Qwen3-VL: transformers' module tree, which the files spell too, on the left, ours right."""

from torchtune_qwenvl.models import weight_rows as shared
from torchtune_qwenvl.models.weight_table import WeightTable

_BLOCK, _LAYER = shared.BLOCK, shared.VISION_LAYER
_STACK, _STACKED = "model.visual.deepstack_merger_list.{i}", "vision_encoder.deepstack_mergers.{i}"

ROWS: shared.Rows = {
    "model.visual.patch_embed.proj.{p}": "vision_encoder.patch_embed.{p}",
    "model.visual.pos_embed.weight": "vision_encoder.position_embed.weight",
    **shared.VISION_LAYER_NORMS,
    **shared.VISION_QKV,
    f"{_BLOCK}.attn.proj.{{p}}": f"{_LAYER}.attn.output_proj.{{p}}",
    f"{_BLOCK}.mlp.linear_fc1.{{p}}": f"{_LAYER}.mlp.w1.{{p}}",
    f"{_BLOCK}.mlp.linear_fc2.{{p}}": f"{_LAYER}.mlp.w2.{{p}}",
    "model.visual.merger.norm.{p}": "vision_encoder.merger.norm.{p}",
    "model.visual.merger.linear_fc1.{p}": "vision_encoder.merger.mlp.w1.{p}",
    "model.visual.merger.linear_fc2.{p}": "vision_encoder.merger.mlp.w2.{p}",
    f"{_STACK}.norm.{{p}}": f"{_STACKED}.norm.{{p}}",
    f"{_STACK}.linear_fc1.{{p}}": f"{_STACKED}.mlp.w1.{{p}}",
    f"{_STACK}.linear_fc2.{{p}}": f"{_STACKED}.mlp.w2.{{p}}",
    **shared.DECODER,
    f"{shared.TEXT}.self_attn.q_norm.weight": f"{shared.TEXT_LAYER}.attn.q_norm.scale",
    f"{shared.TEXT}.self_attn.k_norm.weight": f"{shared.TEXT_LAYER}.attn.k_norm.scale",
    **shared.TEXT_GATE_AND_UP,
}

QWEN3_VL_WEIGHTS = WeightTable(rows=ROWS, prefixes={}, tied=shared.TIED)
