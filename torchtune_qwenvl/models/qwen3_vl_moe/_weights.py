"""Weight names of the Qwen3-VL mixtures of experts: the dense rows, router and experts.

Published files hold the experts' matrices transposed, compared with transformers' modules: [E, in, out].
"""

from torchtune_qwenvl.models.qwen3_vl._weights import ROWS
from torchtune_qwenvl.models.weight_rows import TEXT, TEXT_LAYER, TIED
from torchtune_qwenvl.models.weight_table import WeightTable

QWEN3_VL_MOE_WEIGHTS = WeightTable(
    rows={
        **ROWS,
        f"{TEXT}.mlp.gate.weight": f"{TEXT_LAYER}.mlp.router.weight",
        f"{TEXT}.mlp.experts.gate_up_proj": f"{TEXT_LAYER}.mlp.experts.w1.weight",
        f"{TEXT}.mlp.experts.down_proj": f"{TEXT_LAYER}.mlp.experts.w2.weight",
    },
    prefixes={},
    tied=TIED,
)
