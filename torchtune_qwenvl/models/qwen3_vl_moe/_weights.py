"""Weight names of the Qwen3-VL mixtures of experts: beside the dense rows router and experts.

Published files hold an expert's matrices the other way round than transformers' modules: [E, in, out].
"""

from torchtune_qwenvl.models.qwen3_vl._weights import DENSE_ROWS, SHARED_ROWS, TIED
from torchtune_qwenvl.training.weight_table import WeightTable

_TEXT, _DECODER = "model.language_model.layers.{i}", "decoder.layers.{i}"

QWEN3_VL_MOE_WEIGHTS = WeightTable(
    rows={
        **SHARED_ROWS,
        **DENSE_ROWS,
        f"{_TEXT}.mlp.gate.weight": f"{_DECODER}.mlp.router.weight",
        f"{_TEXT}.mlp.experts.gate_up_proj": f"{_DECODER}.mlp.experts.gate_up",
        f"{_TEXT}.mlp.experts.down_proj": f"{_DECODER}.mlp.experts.down",
    },
    prefixes={},
    tied=TIED,
)
