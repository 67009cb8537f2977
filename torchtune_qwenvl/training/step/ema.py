"""A moving mean of the weights beside the weights: torch's AveragedModel, which also survives a resume."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn


class MeanOfWeights:
    """mean <- decay · mean + (1 - decay) · weights, after each step; the first step copies the weights.

    Make it before the model is sharded, and shard `module` as the model: FSDP copies no sharded module.

    Args:
        model: what trains.
        decay: between 0 and 1.

    Attributes:
        module: the model with the mean as its weights.

    Raises:
        ValueError: a decay outside of 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay: expected a number between 0 and 1, got {decay}")
        self._mean = AveragedModel(model, avg_fn=get_ema_avg_fn(decay))
        self.module: nn.Module = self._mean.module

    def update(self, model: nn.Module) -> None:
        """Take in the weights of a step."""
        self._mean.update_parameters(model)

    def go_on_from(self, step: int) -> None:
        """After so many steps: the mean has been loaded, and the next step must not copy over it."""
        self._mean.n_averaged.fill_(step)

    def with_model(self, model: nn.Module) -> nn.Module:
        """Both, as one module to save and to load."""
        return nn.ModuleDict({"model": model, "mean": self.module})
