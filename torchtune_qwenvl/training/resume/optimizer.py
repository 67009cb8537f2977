"""The optimizer's state by the names of parameters, and how a saved one meets changed settings.

State (moments, counts) always comes from the file. Hyperparameters do as well, as some optimizers and
schedules keep their own figures among them, except for those that the settings have changed since.
"""

import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchtune_qwenvl.distributed import like, local
from torchtune_qwenvl.training.step.optim_in_bwd import OptimizerInBackward

# What torch's schedules write into parameter groups.
SCHEDULED = frozenset(
    ("lr", "initial_lr", "max_lr", "min_lr", "betas", "momentum", "base_momentum", "max_momentum")
)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def optimizer_state(optimizer: Optimizer | OptimizerInBackward, model: nn.Module) -> dict[str, Any]:
    """{"state": {name: its state}, "groups": [{"names": [...], hyperparameters}]}."""
    state: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    for one, names in _optimizers(optimizer, model):
        found = one.state_dict()
        state |= {names[index]: entries for index, entries in found["state"].items()}
        groups += [
            {**group, "params": None, "names": [names[index] for index in group["params"]]}
            for group in found["param_groups"]
        ]
    return {"state": state, "groups": groups}


def load_optimizer_state(
    optimizer: Optimizer | OptimizerInBackward,
    model: nn.Module,
    saved: dict[str, Any],
    changed: Collection[str] = (),
) -> None:
    """Restore what `optimizer_state` returned, into a new optimizer.

    Args:
        optimizer: as the settings make it.
        model: whose parameters it steps.
        saved: from the file; of sharded parameters this rank's part.
        changed: hyperparameters that stay as the settings have them.
    """
    group_of = {name: group for group in saved["groups"] for name in group["names"]}
    for one, names in _optimizers(optimizer, model):
        parameters = [p for group in one.param_groups for p in group["params"]]
        fresh = one.state_dict()["param_groups"]
        one.load_state_dict(
            {
                "state": {
                    index: _sharded(saved["state"][name], parameters[index])
                    for index, name in enumerate(names)
                    if name in saved["state"]
                },
                "param_groups": [
                    _merged(group, group_of[names[group["params"][0]]], changed) for group in fresh
                ],
            }
        )


def replay(scheduler: LRScheduler, steps: int) -> None:
    """Bring a new schedule to where it is after so many steps."""
    with warnings.catch_warnings():
        # No optimizer steps in between here, which torch takes for a mistake.
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step", category=UserWarning)
        for _ in range(steps):
            scheduler.step()


def _optimizers(
    optimizer: Optimizer | OptimizerInBackward, model: nn.Module
) -> Iterator[tuple[Optimizer, list[str]]]:
    """Each optimizer, and the names of its parameters in the order of its state."""
    name_of = {id(parameter): name for name, parameter in trainable(model).items()}
    inner = optimizer.optim_map.values() if isinstance(optimizer, OptimizerInBackward) else [optimizer]
    for one in inner:
        yield one, [name_of[id(p)] for group in one.param_groups for p in group["params"]]


def _merged(fresh: dict[str, Any], saved: dict[str, Any], changed: Collection[str]) -> dict[str, Any]:
    own = {"params", "part", *changed}
    kept = {key: value for key, value in saved.items() if key not in own and key != "names"}
    merged = {**fresh, **kept}
    for key, value in merged.items():
        if isinstance(value, Tensor) and isinstance(fresh.get(key), Tensor):
            merged[key] = value.to(fresh[key].device)
    return merged


def _sharded(entries: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """A parameter's state, sharded again like the parameter if it has the shape of its shard."""

    def restore(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape == local(parameter).shape:
            return like(value, parameter)
        return value

    return {key: restore(value) for key, value in entries.items()}


def copy_parameters(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Put saved values into the parameters that train; of sharded ones this rank's part."""
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            local(parameter).copy_(saved[name])
