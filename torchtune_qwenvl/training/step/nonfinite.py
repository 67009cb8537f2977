"""NaN and infinity: found before the optimizer's step, and described so that their source can be found.

The norm of all gradients is computed in any case, and is not finite if one gradient is not. So one number,
read with the loss, decides. Only once it is bad are weights and gradients looked at one by one.
"""

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from torchtune_qwenvl.distributed import World, local
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4

SHOWN = 8  # places of samples in a message


def describe(
    model: nn.Module,
    world: World,
    gradients: Mapping[nn.Parameter, Tensor],
    losses: Sequence[Tensor],
    places: Sequence[Sequence[str]],
    stepped: bool = False,
) -> str:
    """Which samples and which weights or gradients hold NaN or infinity. All ranks must call.

    Args:
        model: whose parameters are looked at, in their order.
        world: its ranks.
        gradients: parameter -> its gradient, or the gradient's norm.
        losses: of each of this rank's batches.
        places: file and number of each sample of these batches.
        stepped: whether parameters with a gradient have stepped already (optimizer_in_bwd), so that their
            weights say nothing.
    """
    named = dict(model.named_parameters())
    before = {name: p.detach() for name, p in named.items() if not (stepped and p in gradients)}
    weights = bad_tensors(before, world)
    graded = {name: gradients[p] for name, p in named.items() if p in gradients}
    bad = bad_tensors(graded, world)
    when = (
        "The optimizer has stepped in the backward pass (optimizer_in_bwd); nothing is written."
        if stepped
        else "The optimizer has not stepped."
    )
    return f"{_of_tensors(weights, bad, len(graded))} {_of_samples(world, losses, places)} {when}"


def bad_tensors(tensors: Mapping[str, Tensor], world: World) -> list[str]:
    """Names of the tensors that hold NaN or infinity on any rank, in their order. All ranks must call.

    Args:
        tensors: the same names on all ranks; of sharded ones each rank looks at its own part. Those in NF4
            are taken for finite.
        world: its ranks.
    """
    plain = {name: local(tensor) for name, tensor in tensors.items()}
    plain = {name: t for name, t in plain.items() if not is_nf4(t) and t.is_floating_point()}
    if not plain:
        return []
    flags = torch.stack([(~torch.isfinite(t)).any().float().to(world.device) for t in plain.values()])
    found = world.sum(flags).tolist()
    return [name for name, count in zip(plain, found, strict=True) if count]


def check_finite(model: nn.Module, world: World, what: str) -> None:
    """Raise a ValueError if a trained weight is NaN or infinite. All ranks must call.

    Args:
        model: the trained model, sharded or whole.
        world: its ranks.
        what: what is not written then, for the message.
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if bad := bad_tensors(trained, world):
        raise ValueError(
            f"{what} is not written: {len(bad)} of {len(trained)} trained tensors hold NaN or infinity after "
            f"the last step, '{bad[0]}' first. Lower the learning rate, or set clip_grad_norm."
        )


def _of_tensors(weights: Sequence[str], gradients: Sequence[str], count: int) -> str:
    if weights:
        return (
            f"Before the step, {len(weights)} tensors of the model held NaN or infinity already, "
            f"'{weights[0]}' first: look at checkpoint_dir, or lower the learning rate."
        )
    if gradients:
        return (
            f"All weights are finite; the gradients of {len(gradients)} of {count} trained tensors are not, "
            f"'{gradients[0]}' first."
        )
    return "All weights and gradients are finite, one by one; the loss or the norm of all gradients is not."


def _of_samples(world: World, losses: Sequence[Tensor], places: Sequence[Sequence[str]]) -> str:
    """The samples of the batches whose loss is bad; of all batches if no loss is."""
    mine = [
        (bool(torch.isfinite(loss).item()), list(names)) for loss, names in zip(losses, places, strict=True)
    ]
    of_all = [tuple(pair) for text in world.gather(json.dumps(mine)) for pair in json.loads(text)]
    bad = [names for finite, names in of_all if not finite]
    listed = [name for names in bad or [names for _, names in of_all] for name in names]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    of = "of the batches whose loss is bad" if bad else "of the step"
    return f"The samples {of}: {'; '.join(listed[:SHOWN])}{more}."
