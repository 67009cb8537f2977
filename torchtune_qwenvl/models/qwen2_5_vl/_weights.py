"""Weight names of Qwen2.5-VL: transformers' module tree on the left, ours on the right.

Published checkpoints and `save_pretrained` spell `visual.*` and `model.*`; transformers' modules (and
with them PEFT, and folders saved with `save_original_format=False`) `model.visual.*` and
`model.language_model.*`.
"""

from torchtune_qwenvl.models import weight_rows as shared
from torchtune_qwenvl.models.weight_table import WeightTable

QWEN2_5_VL_WEIGHTS = WeightTable(
    rows={
        "model.visual.patch_embed.proj.weight": "vision_encoder.patch_embed.weight",
        **shared.VISION_RMS_NORMS,
        **shared.VISION_QKV,
        f"{shared.BLOCK}.attn.proj.{{p}}": f"{shared.VISION_LAYER}.attn.output_proj.{{p}}",
        **shared.VISION_SWIGLU,
        "model.visual.merger.ln_q.weight": "vision_encoder.merger.norm.scale",
        "model.visual.merger.mlp.0.{p}": "vision_encoder.merger.mlp.w1.{p}",
        "model.visual.merger.mlp.2.{p}": "vision_encoder.merger.mlp.w2.{p}",
        **shared.DECODER,
        **shared.TEXT_GATE_AND_UP,
    },
    prefixes={
        "model.visual.": "model.visual.",
        "model.language_model.": "model.language_model.",
        "visual.": "model.visual.",
        "model.": "model.language_model.",
    },
    tied=shared.TIED,
)
