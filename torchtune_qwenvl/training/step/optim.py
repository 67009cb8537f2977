"""The optimizer, with a learning rate per part, and its schedule, from the config."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchtune.config import instantiate
from torchtune.config._utils import _get_component_from_path

from torchtune_qwenvl.training.step.optim_in_bwd import OptimizerInBackward


def learning_rates(cfg: DictConfig, parts: Mapping[str, object]) -> dict[str, float]:
    """`{part: learning rate}` of the parts that train: `learning_rates.<part>`, or `optimizer.lr` if unset.

    Raises:
        ValueError: neither is set.
    """
    default = cfg.optimizer.get("lr")
    rates = {part: cfg.learning_rates[part] for part in parts}
    rates = {part: default if rate is None else rate for part, rate in rates.items()}
    unset = [part for part, rate in rates.items() if rate is None]
    if unset:
        raise ValueError(
            f"No learning rate for the {', '.join(unset)}: set optimizer.lr or learning_rates.{unset[0]}."
        )
    return {part: float(rate) for part, rate in rates.items()}


def build_optimizer(
    node: DictConfig,
    parts: Mapping[str, Mapping[str, nn.Parameter]],
    rates: Mapping[str, float],
    undecayed: Collection[str] = (),
) -> Optimizer:
    """The optimizer of `node`, with two parameter groups per part: with and without weight decay.

    Norm scales and biases (tensors with one axis) are not decayed, because pulling a scale of 1 towards 0 is
    not regularisation; parameters named in `undecayed` are not either. Each group has the name of its part
    under "part".
    """
    groups = []
    for part, parameters in parts.items():
        for decayed in (True, False):
            chosen = [p for n, p in parameters.items() if (p.dim() > 1 and n not in undecayed) == decayed]
            if chosen:
                groups.append(_group(chosen, part, rates[part], decayed))
    return instantiate(node, groups)


def build_optimizer_in_bwd(
    node: DictConfig, parts: Mapping[str, Mapping[str, nn.Parameter]], rates: Mapping[str, float]
) -> OptimizerInBackward:
    """An optimizer of `node` for every single parameter, with the weight decay of `build_optimizer`."""
    place = {p: (part, name) for part, parameters in parts.items() for name, p in parameters.items()}

    def make(parameter: nn.Parameter) -> Optimizer:
        part = place[parameter][0]
        return instantiate(node, [_group([parameter], part, rates[part], parameter.dim() > 1)])

    return OptimizerInBackward({p: name for p, (_, name) in place.items()}, make)


def _group(parameters: list[nn.Parameter], part: str, rate: float, decayed: bool) -> dict[str, Any]:
    group = {"params": parameters, "lr": rate, "part": part}
    return group if decayed else {**group, "weight_decay": 0.0}


def gradients_of(optimizer: Optimizer | OptimizerInBackward) -> dict[nn.Parameter, Tensor]:
    """Parameter -> its gradient, or the gradient's norm if it is freed already. Others are absent."""
    if isinstance(optimizer, OptimizerInBackward):
        return optimizer.gradient_norms
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return {p: p.grad for p in parameters if p.grad is not None}


def current_learning_rates(optimizer: Optimizer | OptimizerInBackward) -> dict[str, float]:
    """`{part: learning rate}` of the next step."""
    return {group["part"]: float(group["lr"]) for group in optimizer.param_groups}


def build_scheduler(
    node: DictConfig | None, optimizer: Optimizer | OptimizerInBackward, num_training_steps: int
) -> LRScheduler | None:
    """The schedule of `node`; gets `num_training_steps` if it takes that and `node` has none."""
    if node is None:
        return None
    component = _get_component_from_path(node["_component_"])
    asks = "num_training_steps" in inspect.signature(component).parameters
    given = {"num_training_steps": num_training_steps} if asks and "num_training_steps" not in node else {}
    scheduled = optimizer.leader if isinstance(optimizer, OptimizerInBackward) else optimizer
    return instantiate(node, scheduled, **given)
