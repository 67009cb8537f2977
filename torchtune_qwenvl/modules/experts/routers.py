"""Routers of mixtures of experts, and statistics of them for the load-balance loss.

n tokens, k experts per token, E experts, w model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Router(nn.Linear):
    """Softmax in fp32 over the experts; the k largest are taken and normalised to a sum of 1.

    Args:
        width: w.
        experts: E.
        top_k: k.
    """

    def __init__(self, width: int, experts: int, top_k: int) -> None:
        super().__init__(width, experts, bias=False)
        self.top_k = top_k

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """[n, w] -> weights [n, k], the chosen experts [n, k], logits [n, E]."""
        logits = super().forward(x)
        weights, chosen = logits.softmax(-1, dtype=torch.float32).topk(self.top_k)
        return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), chosen, logits


class SigmoidRouter(Router):
    """A sigmoid in fp32 per expert. A bias that balances the load counts in the choice, not in the weights.

    Experts form groups. A token may choose only from the best groups, ranked by the sum of their two best
    experts. The bias is learnt from the load, not by gradients (arXiv:2408.15664); here it stays as it is in
    the checkpoint.

    Args:
        width, experts, top_k: see `Router`.
        groups: number of groups.
        open_groups: number of groups that a token may choose from.
        scale: the weights sum to this.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int,
        *,
        groups: int = 1,
        open_groups: int = 1,
        scale: float = 1.0,
    ) -> None:
        super().__init__(width, experts, top_k)
        self.correction_bias = nn.Parameter(torch.zeros(experts), requires_grad=False)
        self.groups, self.open_groups, self.scale = groups, open_groups, scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """As in `Router`; weights and logits are in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())
        scores = logits.sigmoid()
        chosen = self._open(scores + self.correction_bias).topk(self.top_k, sorted=False).indices
        weights = scores.gather(1, chosen)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.scale, chosen, logits

    def _open(self, rated: Tensor) -> Tensor:
        """Ratings [n, E] with -inf for the experts that a token may not choose."""
        if self.open_groups == self.groups:
            return rated
        groups = rated.unflatten(-1, (self.groups, -1))
        best = groups.topk(2).values.sum(-1).topk(self.open_groups, sorted=False).indices
        closed = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter_(1, best, False)
        return groups.masked_fill(closed[..., None], float("-inf")).flatten(1)


class RouterStatistics:
    """What the routers of one forward pass did, for the load-balance loss.

    The model makes one for each forward pass and passes it down to its layers, which record into it. They
    do not return what they record: FSDP2 hooks every tensor that a layer returns, and as the gradient of this
    loss comes first in the backward pass, it would gather the weights of all layers at once.

    Args:
        real: [n], true for tokens, false for padding; None if there is no padding.
    """

    def __init__(self, real: Tensor | None = None) -> None:
        self.real = real
        self._of: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] | None = {}

    def record(self, layer: nn.Module, chances: Tensor, chosen: Tensor) -> None:
        """Add one layer.

        A layer that is recomputed in the backward pass calls this again. It must then do the same operations,
        which torch compares, but the result is dropped: the loss has been taken, and to keep the result
        would keep the recomputed activations.

        Args:
            layer: whose router it was; a layer counts once.
            chances: [n, E] fp32.
            chosen: [n, k].
        """
        real = chances.new_ones(len(chances)) if self.real is None else self.real.to(chances.dtype)
        used = chances.new_zeros(chances.shape[-1])
        used = used.scatter_add(0, chosen.flatten(), real.repeat_interleave(chosen.shape[-1]))
        figures = used, real @ chances, real.sum()
        if self._of is not None:
            self._of[layer] = figures

    def load_balance_loss(self) -> Tensor:
        """E * sum over experts of (share of tokens sent there) * (mean chance), all layers together.

        k for an even load, more for an uneven one. Can be taken once; nothing is recorded afterwards.
        Source: Switch Transformers, arXiv:2101.03961, eq. 4-6.
        """
        assert self._of, "no router has recorded anything, or the loss was taken before"
        recorded, self._of = self._of.values(), None
        used, chance, tokens = (torch.stack(part).sum(0) for part in zip(*recorded, strict=True))
        return len(used) * (used / tokens) @ (chance / tokens)
