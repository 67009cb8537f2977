"""What the host reads of a step: one transfer, before the optimizer's step."""

from collections.abc import Mapping

import torch
from torch import Tensor

from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.watch.metrics import Step, TotalWork


def read_step(
    world: World, work: TotalWork, sums: Mapping[str, Tensor], norm: Tensor, asked_to_stop: bool
) -> Step:
    """The figures of a step over all ranks. Waits for the device; all ranks must call.

    The optimizer's step depends on them (NaN, no samples), and a signal that reached one rank stops all.
    Nothing else has to be read for the log.

    Args:
        world: the ranks.
        work: of all ranks.
        sums: name -> this rank's sum over its labels; "loss" is the loss.
        norm: of the gradients of all ranks, a scalar.
        asked_to_stop: whether this rank has had a signal.
    """
    asked = torch.tensor(float(asked_to_stop), device=world.device)
    totals = world.sum(torch.stack([*(value.float() for value in sums.values()), asked]))
    rows = (work.counts, totals.double(), norm.detach().double().reshape(1))
    counts, totals, (norm,) = torch.cat(rows).cpu().split([len(row) for row in rows])
    on_host = TotalWork(counts)
    labelled = torch.where(on_host.labelled > 0, on_host.labelled, 1).float()
    means = dict(zip(sums, totals[:-1].float() / labelled, strict=True))
    return Step(means.pop("loss"), norm.float(), on_host, means, bool(on_host.labelled), bool(totals[-1]))
