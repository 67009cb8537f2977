"""Loss on held-out data: the mean over all labelled tokens of all ranks."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from torchtune_qwenvl.distributed import World, reshard


@torch.no_grad()
def validation_loss(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    world: World,
    autocast: Callable[[], AbstractContextManager],
) -> float:
    """Mean loss per labelled token; every rank must bring the same number of batches.

    Args:
        model: called as `model(**batch)`; left in the mode (training or not) in which it came.
        batches: `model`'s arguments with labels, on the device.
        world: whose ranks share the data.
        autocast: makes the context to compute in.

    Raises:
        ValueError: no labelled token in all of the data.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64, device=world.device)
    for batch in batches:
        with autocast():
            loss_sum, n = model(**batch)
        total += torch.stack([loss_sum.double(), n.double()])
    reshard(model)
    model.train(was_training)
    loss_sum, n = world.sum(total).tolist()
    if n == 0:
        raise ValueError(
            "val_dataset: no labelled token in it, so there is no loss to compute. Check its answers."
        )
    return loss_sum / n
