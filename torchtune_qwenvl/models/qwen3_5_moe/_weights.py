"""Weight names of the Qwen3.5 mixtures of experts: the dense rows, router, experts and the shared expert.

Published files hold the experts of a layer in one tensor, as transformers' modules do; `save_pretrained`
writes every expert's matrices for themselves.
"""

from __future__ import annotations

from torchtune_qwenvl.models import weight_rows as shared
from torchtune_qwenvl.models.qwen3_5._weights import PREDICTION, ROWS, with_prediction
from torchtune_qwenvl.models.weight_table import Slice, WeightTable

_MLP, _OURS = f"{shared.TEXT}.mlp", f"{shared.TEXT_LAYER}.mlp"
_DENSE = {f"{_MLP}.{name}_proj.weight" for name in ("gate", "up", "down")}

_ROWS: shared.Rows = {
    **{name: ours for name, ours in ROWS.items() if name not in _DENSE},
    f"{_MLP}.gate.weight": f"{_OURS}.router.weight",
    f"{_MLP}.experts.gate_up_proj": f"{_OURS}.experts.w1.weight",
    f"{_MLP}.experts.down_proj": f"{_OURS}.experts.w2.weight",
    f"{_MLP}.shared_expert.gate_proj.weight": f"{_OURS}.shared.w1.weight",
    f"{_MLP}.shared_expert.down_proj.weight": f"{_OURS}.shared.w2.weight",
    f"{_MLP}.shared_expert.up_proj.weight": f"{_OURS}.shared.w3.weight",
    f"{_MLP}.shared_expert_gate.weight": f"{_OURS}.shared_gate.weight",
}

QWEN3_5_MOE_WEIGHTS = WeightTable(
    rows=with_prediction(_ROWS),
    prefixes={},
    tied=shared.TIED,
    slices={
        f"{_MLP}.experts.{{e}}.gate_proj.weight": Slice(f"{_OURS}.experts.w1.weight", 0, 2),
        f"{_MLP}.experts.{{e}}.up_proj.weight": Slice(f"{_OURS}.experts.w1.weight", 1, 2),
        f"{_MLP}.experts.{{e}}.down_proj.weight": Slice(f"{_OURS}.experts.w2.weight"),
    },
    carried=(PREDICTION,),
)
