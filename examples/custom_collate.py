"""A collate function of your own: pad every batch to one length, so that shapes do not change.

    cd examples
    tune-qwenvl run finetune --config qwen2_5_vl/3B_lora dataset.source=data.jsonl \\
        collate_fn=custom_collate.to_multiples

It gets samples and returns the model's arguments: `tokens`, `labels`, `input_pos`, `encoder_input`. Where the
labelled and the visual tokens are is looked up in what it returns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F

from torchtune_qwenvl.data import collate

MULTIPLE = 64


def to_multiples(samples: Sequence[Mapping[str, Any]], padding_idx: int, ignore_idx: int) -> dict[str, Any]:
    """The package's batch, its rows padded on the right to a multiple of 64 tokens."""
    batch = collate(samples, padding_idx=padding_idx, ignore_idx=ignore_idx)
    more = -batch["tokens"].shape[1] % MULTIPLE
    batch["tokens"] = F.pad(batch["tokens"], (0, more), value=padding_idx)
    batch["labels"] = F.pad(batch["labels"], (0, more), value=ignore_idx)
    batch["input_pos"] = F.pad(batch["input_pos"], (0, 0, 0, more))
    return batch
