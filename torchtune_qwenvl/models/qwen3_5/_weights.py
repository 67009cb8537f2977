"""Weight names of Qwen3.5: transformers' module tree, which the files spell too, on the left, ours right.

The prediction layers `mtp.*` are in the files, but not in transformers' module tree: a model without them
leaves them as they are.
"""

from __future__ import annotations

from torchtune_qwenvl.models import weight_rows as shared
from torchtune_qwenvl.models.qwen3_vl._weights import ROWS as _QWEN3_VL
from torchtune_qwenvl.models.weight_table import WeightTable

_LINEAR, _MIXER = f"{shared.TEXT}.linear_attn", f"{shared.TEXT_LAYER}.attn"
_ENCODER = {name: ours for name, ours in _QWEN3_VL.items() if "visual" in name and "deepstack" not in name}

ATTENTION: shared.Rows = {
    **shared.DECODER,
    f"{shared.TEXT}.self_attn.q_norm.weight": f"{_MIXER}.q_norm.scale",
    f"{shared.TEXT}.self_attn.k_norm.weight": f"{_MIXER}.k_norm.scale",
}
DELTA_NET: shared.Rows = {
    f"{_LINEAR}.in_proj_qkv.weight": tuple(f"{_MIXER}.conv.{name}_proj.weight" for name in "qkv"),
    f"{_LINEAR}.in_proj_z.weight": f"{_MIXER}.gate.q_proj.weight",
    f"{_LINEAR}.in_proj_b.weight": f"{_MIXER}.beta_proj.weight",
    f"{_LINEAR}.in_proj_a.weight": f"{_MIXER}.decay_proj.weight",
    f"{_LINEAR}.conv1d.weight": f"{_MIXER}.conv.weight",
    f"{_LINEAR}.A_log": f"{_MIXER}.A_log",
    f"{_LINEAR}.dt_bias": f"{_MIXER}.dt_bias",
    f"{_LINEAR}.norm.weight": f"{_MIXER}.gate.scale",
    f"{_LINEAR}.out_proj.weight": f"{_MIXER}.gate.output_proj.weight",
}
ROWS: shared.Rows = {**_ENCODER, **ATTENTION, **DELTA_NET, **shared.TEXT_GATE_AND_UP}

PREDICTION = "mtp."
_STEM: shared.Rows = {
    "mtp.fc.weight": "mtp.fc.weight",
    "mtp.pre_fc_norm_embedding.weight": "mtp.pre_fc_norm_embedding.scale",
    "mtp.pre_fc_norm_hidden.weight": "mtp.pre_fc_norm_hidden.scale",
    "mtp.norm.weight": "mtp.norm.scale",
}


def with_prediction(rows: shared.Rows) -> shared.Rows:
    """Rows of a decoder's layers, and of prediction layers that are built as its attention layers."""
    layers = {
        name.replace(shared.TEXT, "mtp.layers.{i}"): ours.replace(shared.TEXT_LAYER, "mtp.layers.{i}")
        for name, ours in rows.items()
        if name.startswith(shared.TEXT) and isinstance(ours, str) and "linear_attn" not in name
    }
    return {**rows, **_STEM, **layers}


QWEN3_5_WEIGHTS = WeightTable(
    rows=with_prediction(ROWS), prefixes={}, tied=shared.TIED, carried=(PREDICTION,)
)
