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
    """Mean loss per labelled token; every rank must have the same number of batches.

    Args:
        model: called as `model(**batch)`; its mode (training or evaluation) is restored.
        batches: the model's arguments including labels, on the device.
        world: the ranks that share the data.
        autocast: returns the context for forward passes.

    Raises:
        ValueError: the data has no labelled token.
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
