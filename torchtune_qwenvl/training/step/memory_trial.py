"""How many layers have to be recomputed for the largest batch to fit: found by running it twice."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.step.checkpointing import (
    Recomputed,
    choose_share,
    fitting_share,
    recomputed_layers,
)

FEWER = 0.75  # share of the layers that the second run recomputes


@dataclass(frozen=True)
class MemoryTrial:
    """Runs a batch with all layers recomputed and with fewer, and measures the memory of both.

    Attributes:
        layers: the decoder's, as `checkpoint_activations` has wrapped them.
        total: bytes of the device.
        peak_of: runs a function; returns the most bytes in use meanwhile.
    """

    layers: list[Recomputed]
    total: float
    peak_of: Callable[[Callable[[], object]], float]

    def share(self, run: Callable[[], object], world: World) -> float | None:
        """The smallest share that fits on every rank; None if not even the second run did.

        Args:
            run: takes a step with the largest batch.
            world: whose ranks run together.
        """
        as_set = [layer.on for layer in self.layers]
        try:
            choose_share(self.layers, 1.0)
            peak = self.peak_of(run)
            choose_share(self.layers, FEWER)
            peaks = world.max(torch.tensor([peak, self.peak_of(run)], device=world.device)).tolist()
        except (torch.OutOfMemoryError, ValueError):
            return None
        finally:
            for layer, on in zip(self.layers, as_set, strict=True):
                layer.on = on
        return fitting_share(peaks[0], peaks[1], FEWER, self.total)


def memory_trial(model: nn.Module, device: torch.device) -> MemoryTrial | None:
    """A trial on a GPU; None on the CPU, whose peak cannot be reset, and where no layer is recomputed."""
    layers = recomputed_layers(model)
    if device.type != "cuda" or not layers:
        return None

    def peak_of(run: Callable[[], object]) -> float:
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return float(torch.cuda.max_memory_allocated(device))

    return MemoryTrial(layers, float(torch.cuda.get_device_properties(device).total_memory), peak_of)
