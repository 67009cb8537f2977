"""What a config.json of GLM-4.5V must say in addition to what a dense GLM's says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torchtune_qwenvl.models.glm4v import _hf_config as dense
from torchtune_qwenvl.models.hf_config import check_multiple, check_range, required

_EXPERTS = ("num_experts_per_tok", "moe_intermediate_size")
# Of transformers' Glm4vMoeTextConfig: what a missing entry means.
_DEFAULTS = {
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}
_NAME_IN_5_X = "num_local_experts"


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    found = dict(raw.get("text_config") or raw)
    head = ("head_dim",) if found.get("head_dim") else ()
    config = dense.normalise_config(raw, replace(dense.RULES, text=head))
    text = config["text_config"]
    found.setdefault("n_routed_experts", found.get(_NAME_IN_5_X))
    text |= {name: required(found, name, "text") for name in ("n_routed_experts", *_EXPERTS)}
    text |= {n: default if found.get(n) is None else found[n] for n, default in _DEFAULTS.items()}
    text["attention_bias"] = bool(found.get("attention_bias", True))
    for name, wanted in (("norm_topk_prob", True), ("use_qk_norm", False)):
        if found.get(name, wanted) != wanted:
            raise ValueError(f"config.json (text): {name} is {found[name]}, which no GLM-4.5V is")
    experts, groups = text["n_routed_experts"], text["n_group"]
    check_multiple(experts, groups, "n_routed_experts over n_group")
    check_range(text, "topk_group", groups, "n_group")
    open_experts = experts // groups * text["topk_group"]
    check_range(text, "num_experts_per_tok", open_experts, "the experts of topk_group groups")
    return config
