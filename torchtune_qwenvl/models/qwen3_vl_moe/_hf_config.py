"""What a config.json of a Qwen3-VL mixture of experts must say in addition to what a dense one's says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.models.hf_config import check_range, required
from torchtune_qwenvl.models.qwen3_vl import _hf_config as dense

_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
_NAME_IN_5_X = "num_local_experts"


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`; adds `dense_layers`."""
    config = dense.normalise_config(raw)
    text, found = config["text_config"], dict(raw.get("text_config") or raw)
    found.setdefault("num_experts", found.get(_NAME_IN_5_X))
    text |= {name: required(found, name, "text") for name in _EXPERTS}
    check_range(text, "num_experts_per_tok", text["num_experts"], "num_experts")
    if found.get("norm_topk_prob") is False:
        raise ValueError("config.json (text): norm_topk_prob is false, which no Qwen3-VL is")
    step, listed = found.get("decoder_sparse_step") or 1, found.get("mlp_only_layers") or []
    text["decoder_sparse_step"], text["mlp_only_layers"] = step, list(listed)
    layers = range(text["num_hidden_layers"])
    text["dense_layers"] = [i for i in layers if i in listed or (i + 1) % step]
    return config
