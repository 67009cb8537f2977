"""Rows that several families' weight tables share: names in transformers' module tree -> our names."""

from __future__ import annotations

BLOCK, VISION_LAYER = "model.visual.blocks.{i}", "vision_encoder.layers.{i}"
TEXT, TEXT_LAYER = "model.language_model.layers.{i}", "decoder.layers.{i}"
TIED = {"decoder.output.weight": "decoder.tok_embeddings.weight"}

Rows = dict[str, str | tuple[str, ...]]

VISION_QKV: Rows = {
    f"{BLOCK}.attn.qkv.{{p}}": (
        f"{VISION_LAYER}.attn.q_proj.{{p}}",
        f"{VISION_LAYER}.attn.k_proj.{{p}}",
        f"{VISION_LAYER}.attn.v_proj.{{p}}",
    ),
}
VISION_SWIGLU: Rows = {
    f"{BLOCK}.mlp.gate_proj.{{p}}": f"{VISION_LAYER}.mlp.w1.{{p}}",
    f"{BLOCK}.mlp.down_proj.{{p}}": f"{VISION_LAYER}.mlp.w2.{{p}}",
    f"{BLOCK}.mlp.up_proj.{{p}}": f"{VISION_LAYER}.mlp.w3.{{p}}",
}
# For vision layers with LayerNorm, which has weight and bias.
VISION_LAYER_NORMS: Rows = {
    f"{BLOCK}.norm1.{{p}}": f"{VISION_LAYER}.sa_norm.{{p}}",
    f"{BLOCK}.norm2.{{p}}": f"{VISION_LAYER}.mlp_norm.{{p}}",
}
VISION_RMS_NORMS: Rows = {
    f"{BLOCK}.norm1.weight": f"{VISION_LAYER}.sa_norm.scale",
    f"{BLOCK}.norm2.weight": f"{VISION_LAYER}.mlp_norm.scale",
}
DECODER: Rows = {
    "model.language_model.embed_tokens.weight": "decoder.tok_embeddings.weight",
    f"{TEXT}.input_layernorm.weight": f"{TEXT_LAYER}.sa_norm.scale",
    f"{TEXT}.self_attn.q_proj.{{p}}": f"{TEXT_LAYER}.attn.q_proj.{{p}}",
    f"{TEXT}.self_attn.k_proj.{{p}}": f"{TEXT_LAYER}.attn.k_proj.{{p}}",
    f"{TEXT}.self_attn.v_proj.{{p}}": f"{TEXT_LAYER}.attn.v_proj.{{p}}",
    f"{TEXT}.self_attn.o_proj.weight": f"{TEXT_LAYER}.attn.output_proj.weight",
    f"{TEXT}.post_attention_layernorm.weight": f"{TEXT_LAYER}.mlp_norm.scale",
    f"{TEXT}.mlp.down_proj.weight": f"{TEXT_LAYER}.mlp.w2.weight",
    "model.language_model.norm.weight": "decoder.norm.scale",
    "lm_head.weight": "decoder.output.weight",
}
TEXT_GATE_AND_UP: Rows = {
    f"{TEXT}.mlp.gate_proj.weight": f"{TEXT_LAYER}.mlp.w1.weight",
    f"{TEXT}.mlp.up_proj.weight": f"{TEXT_LAYER}.mlp.w3.weight",
}
