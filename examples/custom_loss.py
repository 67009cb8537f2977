"""A loss of your own: the focal loss, which counts a position less the surer the model is of it.

    cd examples
    tune-qwenvl run finetune --config qwen2_5_vl/3B_lora dataset.source=data.jsonl \\
        loss=custom_loss.focal_loss loss.gamma=2.0

A loss gets the logits [k, v] of some labelled positions and their targets [k], and returns one number per
position. The recipe takes the mean over all labelled tokens of a step, on all processes. Only a part of the
positions comes at once, sometimes none. Source: Lin et al. 2017, arXiv:1708.02002, section 3.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def focal_loss(gamma: float = 2.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Make the loss (1 - p)^gamma * -log p for a target of probability p; gamma 0 is cross-entropy."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(logits.float(), targets, reduction="none")
        return (1 - (-cross_entropy).exp()) ** gamma * cross_entropy

    return loss
