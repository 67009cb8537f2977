"""Weight names of Qwen3-VL: transformers' module tree, which the files spell too, on the left, ours right."""

from torchtune_qwenvl.training.weight_table import WeightTable

_BLOCK, _LAYER = "model.visual.blocks.{i}", "vision_encoder.layers.{i}"
_TEXT, _DECODER = "model.language_model.layers.{i}", "decoder.layers.{i}"
_STACK, _STACKED = "model.visual.deepstack_merger_list.{i}", "vision_encoder.deepstack_mergers.{i}"

SHARED_ROWS: dict[str, str | tuple[str, ...]] = {
    "model.visual.patch_embed.proj.{p}": "vision_encoder.patch_embed.{p}",
    "model.visual.pos_embed.weight": "vision_encoder.position_embed.weight",
    f"{_BLOCK}.norm1.{{p}}": f"{_LAYER}.sa_norm.{{p}}",
    f"{_BLOCK}.attn.qkv.{{p}}": (
        f"{_LAYER}.attn.q_proj.{{p}}",
        f"{_LAYER}.attn.k_proj.{{p}}",
        f"{_LAYER}.attn.v_proj.{{p}}",
    ),
    f"{_BLOCK}.attn.proj.{{p}}": f"{_LAYER}.attn.output_proj.{{p}}",
    f"{_BLOCK}.norm2.{{p}}": f"{_LAYER}.mlp_norm.{{p}}",
    f"{_BLOCK}.mlp.linear_fc1.{{p}}": f"{_LAYER}.mlp.w1.{{p}}",
    f"{_BLOCK}.mlp.linear_fc2.{{p}}": f"{_LAYER}.mlp.w2.{{p}}",
    "model.visual.merger.norm.{p}": "vision_encoder.merger.norm.{p}",
    "model.visual.merger.linear_fc1.{p}": "vision_encoder.merger.mlp.w1.{p}",
    "model.visual.merger.linear_fc2.{p}": "vision_encoder.merger.mlp.w2.{p}",
    f"{_STACK}.norm.{{p}}": f"{_STACKED}.norm.{{p}}",
    f"{_STACK}.linear_fc1.{{p}}": f"{_STACKED}.mlp.w1.{{p}}",
    f"{_STACK}.linear_fc2.{{p}}": f"{_STACKED}.mlp.w2.{{p}}",
    "model.language_model.embed_tokens.weight": "decoder.tok_embeddings.weight",
    f"{_TEXT}.input_layernorm.weight": f"{_DECODER}.sa_norm.scale",
    f"{_TEXT}.self_attn.q_proj.weight": f"{_DECODER}.attn.q_proj.weight",
    f"{_TEXT}.self_attn.k_proj.weight": f"{_DECODER}.attn.k_proj.weight",
    f"{_TEXT}.self_attn.v_proj.weight": f"{_DECODER}.attn.v_proj.weight",
    f"{_TEXT}.self_attn.o_proj.weight": f"{_DECODER}.attn.output_proj.weight",
    f"{_TEXT}.self_attn.q_norm.weight": f"{_DECODER}.attn.q_norm.scale",
    f"{_TEXT}.self_attn.k_norm.weight": f"{_DECODER}.attn.k_norm.scale",
    f"{_TEXT}.post_attention_layernorm.weight": f"{_DECODER}.mlp_norm.scale",
    "model.language_model.norm.weight": "decoder.norm.scale",
    "lm_head.weight": "decoder.output.weight",
}
DENSE_ROWS = {
    f"{_TEXT}.mlp.gate_proj.weight": f"{_DECODER}.mlp.w1.weight",
    f"{_TEXT}.mlp.down_proj.weight": f"{_DECODER}.mlp.w2.weight",
    f"{_TEXT}.mlp.up_proj.weight": f"{_DECODER}.mlp.w3.weight",
}
TIED = {"decoder.output.weight": "decoder.tok_embeddings.weight"}

QWEN3_VL_WEIGHTS = WeightTable(rows={**SHARED_ROWS, **DENSE_ROWS}, prefixes={}, tied=TIED)
