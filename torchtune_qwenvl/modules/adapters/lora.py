"""LoRA and DoRA on linear layers: the settings of an adapter, and linears with one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from torchtune_qwenvl.modules.adapters.dora import DoRALinear
from torchtune_qwenvl.modules.adapters.lora_linear import FrozenNF4Linear, LoRALinear
from torchtune_qwenvl.modules.adapters.nf4 import takes_nf4

ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "output_proj")
MLP_LINEARS = ("w1", "w2", "w3")
_ADAPTER_WEIGHTS = ("lora_a", "lora_b", "magnitude")


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter was added by LoRA or DoRA."""
    return any(name in _ADAPTER_WEIGHTS for name in parameter_name.split("."))


@dataclass(frozen=True)
class Adapter:
    """LoRA on the linears named in `targets`: LoRALinear or DoRALinear.

    With `quantize_base` the frozen weights are in NF4, also those of linears that are not in `targets`.
    """

    targets: frozenset[str]
    rank: int
    alpha: float
    dropout: float = 0.0
    use_dora: bool = False
    quantize_base: bool = False


NO_TARGETS = Adapter(frozenset(), rank=0, alpha=0.0)


def make_linear(
    name: str, in_dim: int, out_dim: int, *, bias: bool, adapter: Adapter | None = None
) -> nn.Module:
    """The linear called `name` in its attention or MLP, with an adapter if `name` is one of its targets."""
    quantized = adapter is not None and adapter.quantize_base and takes_nf4(in_dim * out_dim)
    if adapter is None or name not in adapter.targets:
        return (FrozenNF4Linear if quantized else nn.Linear)(in_dim, out_dim, bias=bias)
    kind = DoRALinear if adapter.use_dora else LoRALinear
    options = {"use_bias": bias, "quantize_base": quantized}
    return kind(in_dim, out_dim, adapter.rank, adapter.alpha, adapter.dropout, **options)
