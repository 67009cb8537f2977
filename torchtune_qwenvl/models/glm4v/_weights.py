"""Weight names of GLM-4.1V: transformers' module tree on the left, ours on the right.

Published checkpoints and `save_pretrained` spell the module tree's names.
"""

from torchtune_qwenvl.training.weight_table import WeightTable

_BLOCK, _LAYER = "model.visual.blocks.{i}", "vision_encoder.layers.{i}"
_TEXT, _DECODER = "model.language_model.layers.{i}", "decoder.layers.{i}"
_MERGER = "vision_encoder.merger"

GLM4V_WEIGHTS = WeightTable(
    rows={
        "model.visual.patch_embed.proj.{p}": "vision_encoder.patch_embed.{p}",
        "model.visual.post_conv_layernorm.weight": "vision_encoder.patch_norm.scale",
        "model.visual.embeddings.position_embedding.weight": "vision_encoder.position_embed.weight",
        f"{_BLOCK}.norm1.weight": f"{_LAYER}.sa_norm.scale",
        f"{_BLOCK}.attn.qkv.{{p}}": (
            f"{_LAYER}.attn.q_proj.{{p}}",
            f"{_LAYER}.attn.k_proj.{{p}}",
            f"{_LAYER}.attn.v_proj.{{p}}",
        ),
        f"{_BLOCK}.attn.proj.weight": f"{_LAYER}.attn.output_proj.weight",
        f"{_BLOCK}.norm2.weight": f"{_LAYER}.mlp_norm.scale",
        f"{_BLOCK}.mlp.gate_proj.weight": f"{_LAYER}.mlp.w1.weight",
        f"{_BLOCK}.mlp.down_proj.weight": f"{_LAYER}.mlp.w2.weight",
        f"{_BLOCK}.mlp.up_proj.weight": f"{_LAYER}.mlp.w3.weight",
        "model.visual.post_layernorm.weight": f"{_MERGER}.norm.scale",
        "model.visual.downsample.{p}": f"{_MERGER}.downsample.{{p}}",
        "model.visual.merger.proj.weight": f"{_MERGER}.proj.weight",
        "model.visual.merger.post_projection_norm.{p}": f"{_MERGER}.proj_norm.{{p}}",
        "model.visual.merger.gate_proj.weight": f"{_MERGER}.mlp.w1.weight",
        "model.visual.merger.down_proj.weight": f"{_MERGER}.mlp.w2.weight",
        "model.visual.merger.up_proj.weight": f"{_MERGER}.mlp.w3.weight",
        "model.language_model.embed_tokens.weight": "decoder.tok_embeddings.weight",
        f"{_TEXT}.input_layernorm.weight": f"{_DECODER}.sa_norm.scale",
        f"{_TEXT}.self_attn.q_proj.{{p}}": f"{_DECODER}.attn.q_proj.{{p}}",
        f"{_TEXT}.self_attn.k_proj.{{p}}": f"{_DECODER}.attn.k_proj.{{p}}",
        f"{_TEXT}.self_attn.v_proj.{{p}}": f"{_DECODER}.attn.v_proj.{{p}}",
        f"{_TEXT}.self_attn.o_proj.weight": f"{_DECODER}.attn.output_proj.weight",
        f"{_TEXT}.post_self_attn_layernorm.weight": f"{_DECODER}.sa_scale.scale",
        f"{_TEXT}.post_attention_layernorm.weight": f"{_DECODER}.mlp_norm.scale",
        f"{_TEXT}.mlp.gate_up_proj.weight": (f"{_DECODER}.mlp.w1.weight", f"{_DECODER}.mlp.w3.weight"),
        f"{_TEXT}.mlp.down_proj.weight": f"{_DECODER}.mlp.w2.weight",
        f"{_TEXT}.post_mlp_layernorm.weight": f"{_DECODER}.mlp_scale.scale",
        "model.language_model.norm.weight": "decoder.norm.scale",
        "lm_head.weight": "decoder.output.weight",
    },
    prefixes={"model.": "model."},
    tied={"decoder.output.weight": "decoder.tok_embeddings.weight"},
)
