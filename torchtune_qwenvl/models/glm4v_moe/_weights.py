"""Weight names of GLM's mixtures of experts: transformers' module tree on the left, ours on the right.

Files hold every expert's matrices for themselves, published ones and those of `save_pretrained` alike;
transformers' modules, and folders saved with `save_original_format=False`, hold them in one tensor per layer.
"""

from torchtune_qwenvl.models import weight_rows as shared
from torchtune_qwenvl.models.glm4v._weights import VISION
from torchtune_qwenvl.models.weight_table import Slice, WeightTable

_TEXT, _LAYER = shared.TEXT, shared.TEXT_LAYER

GLM4V_MOE_WEIGHTS = WeightTable(
    rows={
        **VISION,
        **shared.DECODER,
        **shared.TEXT_GATE_AND_UP,
        f"{_TEXT}.mlp.gate.weight": f"{_LAYER}.mlp.router.weight",
        f"{_TEXT}.mlp.gate.e_score_correction_bias": f"{_LAYER}.mlp.router.correction_bias",
        f"{_TEXT}.mlp.experts.gate_up_proj": f"{_LAYER}.mlp.experts.w1.weight",
        f"{_TEXT}.mlp.experts.down_proj": f"{_LAYER}.mlp.experts.w2.weight",
        f"{_TEXT}.mlp.shared_experts.gate_proj.weight": f"{_LAYER}.mlp.shared.w1.weight",
        f"{_TEXT}.mlp.shared_experts.down_proj.weight": f"{_LAYER}.mlp.shared.w2.weight",
        f"{_TEXT}.mlp.shared_experts.up_proj.weight": f"{_LAYER}.mlp.shared.w3.weight",
    },
    prefixes={"model.": "model."},
    tied=shared.TIED,
    slices={
        f"{_TEXT}.mlp.experts.{{e}}.gate_proj.weight": Slice(f"{_LAYER}.mlp.experts.w1.weight", 0, 2),
        f"{_TEXT}.mlp.experts.{{e}}.up_proj.weight": Slice(f"{_LAYER}.mlp.experts.w1.weight", 1, 2),
        f"{_TEXT}.mlp.experts.{{e}}.down_proj.weight": Slice(f"{_LAYER}.mlp.experts.w2.weight"),
    },
    # PEFT takes modules of these names for experts of older files.
    peft_parameters=("gate_proj", "up_proj", "down_proj"),
)
