"""What a config.json of a Qwen3.5 mixture of experts must say in addition to what a dense one's says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.entries import OBJECT, check_entries
from torchtune_qwenvl.models.hf_config import check_range, required
from torchtune_qwenvl.models.qwen3_5 import _hf_config as dense

_EXPERTS = (
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    check_entries(raw, {"text_config": OBJECT}, "config.json")
    given = dict(raw.get("text_config") or raw)
    experts = {name: required(given, name, "text") for name in _EXPERTS}
    # There is no dense MLP, so files need not give its width.
    given["intermediate_size"] = experts["shared_expert_intermediate_size"]
    config = dense.normalise_config({**raw, "text_config": given})
    text = config["text_config"]
    text |= experts
    check_range(text, "num_experts_per_tok", text["num_experts"], "num_experts")
    allowed: dict[str, tuple[Any, ...]] = {"norm_topk_prob": (None, True), "mlp_only_layers": (None, [], ())}
    for name, values in allowed.items():
        if given.get(name) not in values:
            raise ValueError(f"config.json (text): {name} is {given[name]!r}, which no Qwen3.5 has")
    return config
