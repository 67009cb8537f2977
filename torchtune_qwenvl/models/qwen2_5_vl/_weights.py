"""Weight names of Qwen2.5-VL: transformers' module tree on the left, ours on the right.

Published checkpoints and `save_pretrained` spell `visual.*` and `model.*`; transformers' modules (and
with them PEFT, and folders saved with `save_original_format=False`) `model.visual.*` and
`model.language_model.*`.
"""

from torchtune_qwenvl.training.weight_table import WeightTable

_BLOCK, _LAYER = "model.visual.blocks.{i}", "vision_encoder.layers.{i}"
_TEXT, _DECODER = "model.language_model.layers.{i}", "decoder.layers.{i}"

QWEN2_5_VL_WEIGHTS = WeightTable(
    rows={
        "model.visual.patch_embed.proj.weight": "vision_encoder.patch_embed.weight",
        f"{_BLOCK}.norm1.weight": f"{_LAYER}.sa_norm.scale",
        f"{_BLOCK}.attn.qkv.{{p}}": (
            f"{_LAYER}.attn.q_proj.{{p}}",
            f"{_LAYER}.attn.k_proj.{{p}}",
            f"{_LAYER}.attn.v_proj.{{p}}",
        ),
        f"{_BLOCK}.attn.proj.{{p}}": f"{_LAYER}.attn.output_proj.{{p}}",
        f"{_BLOCK}.norm2.weight": f"{_LAYER}.mlp_norm.scale",
        f"{_BLOCK}.mlp.gate_proj.{{p}}": f"{_LAYER}.mlp.w1.{{p}}",
        f"{_BLOCK}.mlp.down_proj.{{p}}": f"{_LAYER}.mlp.w2.{{p}}",
        f"{_BLOCK}.mlp.up_proj.{{p}}": f"{_LAYER}.mlp.w3.{{p}}",
        "model.visual.merger.ln_q.weight": "vision_encoder.merger.norm.scale",
        "model.visual.merger.mlp.0.{p}": "vision_encoder.merger.mlp.w1.{p}",
        "model.visual.merger.mlp.2.{p}": "vision_encoder.merger.mlp.w2.{p}",
        "model.language_model.embed_tokens.weight": "decoder.tok_embeddings.weight",
        f"{_TEXT}.input_layernorm.weight": f"{_DECODER}.sa_norm.scale",
        f"{_TEXT}.self_attn.q_proj.{{p}}": f"{_DECODER}.attn.q_proj.{{p}}",
        f"{_TEXT}.self_attn.k_proj.{{p}}": f"{_DECODER}.attn.k_proj.{{p}}",
        f"{_TEXT}.self_attn.v_proj.{{p}}": f"{_DECODER}.attn.v_proj.{{p}}",
        f"{_TEXT}.self_attn.o_proj.weight": f"{_DECODER}.attn.output_proj.weight",
        f"{_TEXT}.post_attention_layernorm.weight": f"{_DECODER}.mlp_norm.scale",
        f"{_TEXT}.mlp.gate_proj.weight": f"{_DECODER}.mlp.w1.weight",
        f"{_TEXT}.mlp.down_proj.weight": f"{_DECODER}.mlp.w2.weight",
        f"{_TEXT}.mlp.up_proj.weight": f"{_DECODER}.mlp.w3.weight",
        "model.language_model.norm.weight": "decoder.norm.scale",
        "lm_head.weight": "decoder.output.weight",
    },
    prefixes={
        "model.visual.": "model.visual.",
        "model.language_model.": "model.language_model.",
        "visual.": "model.visual.",
        "model.": "model.language_model.",
    },
    tied={"decoder.output.weight": "decoder.tok_embeddings.weight"},
)
