"""Recompute some of the layers in the backward pass instead of keeping what is inside of them.

Recomputing every layer costs another forward pass, a quarter of a step. Where memory is left, fewer layers
have to be recomputed: a share of them, spread evenly. `dry_run` says which share fits, see `fitting_share`.

Wraps the `forward` of each layer, not the module. So parameters keep their names, and FSDP's hooks, which are
outside of `forward`, see one call. A layer is compiled first, then wrapped.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.modules.trainable import part_of

USABLE = 0.92  # share of a device's memory that a run may fill: the rest is for fragments and libraries
STEPS = 20  # shares are multiples of 1/20


class Recomputed:
    """The `forward` of a layer, recomputed in the backward pass while `on`."""

    def __init__(self, forward: Callable[..., Any], on: bool) -> None:
        self.forward, self.on = forward, on

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.on:
            return checkpoint(self.forward, *args, use_reentrant=False, **options)
        return self.forward(*args, **options)


def checkpoint_activations(model: nn.Module, towers: Mapping[str, bool | float]) -> None:
    """Recompute layers of the towers "encoder" and "decoder"; call before `shard`.

    Args:
        model: with transformer layers.
        towers: tower -> the share of its layers, 0 to 1; true is all of them, false none.

    Raises:
        ValueError: a share outside of 0 to 1.
    """
    for tower, share in towers.items():
        if not 0 <= float(share) <= 1:
            raise ValueError(
                f"activation_checkpointing.{tower}: expected true, false or a share of the layers from 0 to "
                f"1, got {share}"
            )
        if share:
            for layer in _layers(model, tower):
                layer.forward = Recomputed(layer.forward, on=True)  # type: ignore[method-assign]
            choose_share(recomputed_layers(model, tower), float(share))


def choose_share(wrapped: Sequence[Recomputed], share: float) -> None:
    """Recompute this share of the layers of a tower, spread evenly."""
    for i, forward in enumerate(wrapped):
        forward.on = math.floor((i + 1) * share + 1e-9) > math.floor(i * share + 1e-9)


def recomputed_layers(model: nn.Module, tower: str = "decoder") -> list[Recomputed]:
    """The `forward` of every layer of a tower that `checkpoint_activations` has wrapped."""
    forwards = [layer.forward for layer in _layers(model, tower)]
    return [forward for forward in forwards if isinstance(forward, Recomputed)]


def fitting_share(peak: float, less: float, share: float, total: float) -> float:
    """The smallest share of layers to recompute with which a batch fits; memory grows evenly with the others.

    Args:
        peak: memory in use at most if all layers are recomputed.
        less: the same if only `share` of them are.
        share: below 1.
        total: memory of the device.
    """
    per_share = (less - peak) / (1 - share)
    kept = 1.0 if per_share <= 0 else (USABLE * total - peak) / per_share
    return min(1.0, max(0.0, math.ceil((1 - kept) * STEPS - 1e-9) / STEPS))


def _layers(model: nn.Module, tower: str) -> list[nn.Module]:
    named = model.named_modules()
    return [m for name, m in named if isinstance(m, TransformerSelfAttentionLayer) and part_of(name) == tower]
