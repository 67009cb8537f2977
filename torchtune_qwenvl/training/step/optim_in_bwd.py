"""One optimizer per parameter, which steps as soon as the gradient is computed and then frees it.

So the gradients of all parameters never exist at the same time. These are torchtune's wrapper and hooks, with
what our recipe needs in addition: norms of the freed gradients, weight decay for matrices only, one schedule
for all parameters, and sharding (FSDP2 runs the hooks as well).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchtune.training import OptimizerInBackwardWrapper, register_optim_in_bwd_hooks


class OptimizerInBackward(OptimizerInBackwardWrapper):
    """Used like an Optimizer; `step` does nothing, since all parameters have stepped by then.

    Args:
        names: parameter -> its name in the state; other parameters do not train.
        make: parameter -> its optimizer, with one group; all have the same learning rate.

    Attributes:
        gradient_norms: parameter -> 2-norm of its gradient since `zero_grad`.
        leader: the optimizer for the scheduler; the others use its learning rate.
        paused: whether gradients are dropped without a step, as in a step without samples.
    """

    def __init__(self, names: Mapping[nn.Parameter, str], make: Callable[[nn.Parameter], Optimizer]) -> None:
        optimizers = {parameter: make(parameter) for parameter in names}
        super().__init__({name: optimizers[parameter] for parameter, name in names.items()})
        self.leader = next(iter(optimizers.values()))
        self.gradient_norms: dict[nn.Parameter, Tensor] = {}
        self.paused = False
        self._optimizers = optimizers
        for parameter in optimizers:
            parameter.register_post_accumulate_grad_hook(self._before_step)
        register_optim_in_bwd_hooks(nn.ParameterList(optimizers), optimizers)

    @property
    def param_groups(self) -> list[dict]:
        """The groups of all parameters, with the learning rate of the next step."""
        groups = [group for optimizer in self.optim_map.values() for group in optimizer.param_groups]
        return [{**group, "lr": self.rate} for group in groups]

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.leader.param_groups[0]["lr"])

    def step(self) -> None:
        """Does nothing: every parameter with a gradient has stepped."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the norms; the gradients are freed already."""
        self.gradient_norms = {}

    def _before_step(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        # For a sharded gradient this is a partial norm. Ranks communicate when it is read, not here.
        self.gradient_norms[parameter] = torch.linalg.vector_norm(parameter.grad)
        if self.paused:
            parameter.grad = None  # which its optimizer, called next, leaves alone
            return
        group = self._optimizers[parameter].param_groups[0]
        if isinstance(group["lr"], Tensor):  # torchao's optimizers do not accept another object
            group["lr"].fill_(self.rate)
        else:
            group["lr"] = self.rate
