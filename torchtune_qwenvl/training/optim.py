"""Optimizer with a learning rate per part, and its schedule, from config nodes."""

import inspect
from collections.abc import Mapping

from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchtune.config import instantiate
from torchtune.config._utils import _get_component_from_path


def learning_rates(cfg: DictConfig, parts: Mapping[str, object]) -> dict[str, float]:
    """`{part: learning rate}` for the parts that train: `learning_rates.<part>`, else `optimizer.lr`.

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
    node: DictConfig, parts: Mapping[str, Mapping[str, nn.Parameter]], rates: Mapping[str, float]
) -> Optimizer:
    """The optimizer of `node` over one parameter group per part, and one for what takes no weight decay.

    Norm scales and biases (tensors of one axis) are not decayed: pulling a scale of 1 towards 0 is no
    regularisation. Each group carries its part's name under "part".
    """
    groups = []
    for part, parameters in parts.items():
        matrices = [p for p in parameters.values() if p.dim() > 1]
        vectors = [p for p in parameters.values() if p.dim() <= 1]
        if matrices:
            groups.append({"params": matrices, "lr": rates[part], "part": part})
        if vectors:
            groups.append({"params": vectors, "lr": rates[part], "part": part, "weight_decay": 0.0})
    return instantiate(node, groups)


def current_learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """`{part: learning rate}` as the next step will use it."""
    return {group["part"]: float(group["lr"]) for group in optimizer.param_groups}


def build_scheduler(
    node: DictConfig | None, optimizer: Optimizer, num_training_steps: int
) -> LRScheduler | None:
    """The schedule of `node`; gets `num_training_steps` where it takes it and `node` does not say."""
    if node is None:
        return None
    component = _get_component_from_path(node["_component_"])
    asks = "num_training_steps" in inspect.signature(component).parameters
    given = {"num_training_steps": num_training_steps} if asks and "num_training_steps" not in node else {}
    return instantiate(node, optimizer, **given)
