"""An optimizer per parameter that steps as soon as the gradient is there, and then drops it: gradients of all
parameters never exist at once.

torchtune's wrapper and hooks, with what our recipe asks of an optimizer beside: the norms of gradients that
are gone, weight decay for matrices only, one schedule for all, and shards (FSDP2 runs the hooks too).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchtune.training import OptimizerInBackwardWrapper, register_optim_in_bwd_hooks


class OptimizerInBackward(OptimizerInBackwardWrapper):
    """Stands where an Optimizer stands; `step` has nothing left to do.

    Args:
        names: parameter -> its name in the state; what else the model has stays as it is.
        make: parameter -> its optimizer, of one group; all have one learning rate.

    Attributes:
        gradient_norms: parameter -> 2-norm of the gradient it had since `zero_grad`.
        leader: the optimizer that a scheduler is given; the others take its rate.
    """

    def __init__(self, names: Mapping[nn.Parameter, str], make: Callable[[nn.Parameter], Optimizer]) -> None:
        optimizers = {parameter: make(parameter) for parameter in names}
        super().__init__({name: optimizers[parameter] for parameter, name in names.items()})
        self.leader = next(iter(optimizers.values()))
        self.gradient_norms: dict[nn.Parameter, Tensor] = {}
        self._optimizers = optimizers
        for parameter in optimizers:
            parameter.register_post_accumulate_grad_hook(self._before_step)
        register_optim_in_bwd_hooks(nn.ParameterList(optimizers), optimizers)

    @property
    def param_groups(self) -> list[dict]:
        """Of all parameters, with the rate of the next step."""
        groups = [group for optimizer in self.optim_map.values() for group in optimizer.param_groups]
        return [{**group, "lr": self.rate} for group in groups]

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.leader.param_groups[0]["lr"])

    def step(self) -> None:
        """Every parameter that got a gradient has stepped."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients are gone; now their norms are, too."""
        self.gradient_norms = {}

    def _before_step(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        # Of a sharded gradient this is a partial norm: ranks meet when it is read, not here.
        self.gradient_norms[parameter] = torch.linalg.vector_norm(parameter.grad)
        group = self._optimizers[parameter].param_groups[0]
        if isinstance(group["lr"], Tensor):  # torchao's optimizers refuse another object
            group["lr"].fill_(self.rate)
        else:
            group["lr"] = self.rate
