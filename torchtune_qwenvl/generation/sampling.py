"""How the next token is chosen from logits, as transformers chooses it.

The same operations in the same order as its logits processors: a penalty on tokens that are there already,
then temperature, top_k, top_p and min_p. b rows, v vocabulary.
Source: transformers, `generation/logits_process.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchtune_qwenvl.entries import COUNT, FLAG, NATURAL, NUMBER, POSITIVE, check_entries
from torchtune_qwenvl.json_files import read_json_if_there

FILE = "generation_config.json"
# Entries that would change what is generated; the values under which they change nothing.
_UNREAD: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "bad_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "top_h": (),
    "exponential_decay_length_penalty": (),
    "forced_eos_token_id": (),
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: sample only from the k likeliest tokens; 0 means all.
        top_p: sample only from the likeliest tokens that together reach this probability; 1 means all.
        seed: row i has the seed `seed + i`.
        min_p: sample only from tokens with at least this share of the likeliest one's probability; 0 means
            all.
        repetition_penalty: above 1, tokens of the prompt and of the answer so far become less likely.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ValueError(
                f"expected temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got {self.temperature}, "
                f"{self.top_k} and {self.top_p}"
            )
        if not (0 <= self.min_p <= 1 and self.repetition_penalty > 0):
            raise ValueError(
                f"expected 0 <= min_p <= 1 and repetition_penalty > 0, got {self.min_p} and "
                f"{self.repetition_penalty}"
            )

    def with_given(self, **given: Any) -> Sampling:
        """The same with other values; None keeps one."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


GREEDY = Sampling()


def folder_sampling(folder: str | Path) -> tuple[Sampling, list[str]]:
    """How a folder's generation_config.json chooses, and its entries that are not followed.

    Without `do_sample` it is greedy. A missing entry has transformers' default, for `top_k` 50.

    Args:
        folder: a checkpoint folder; without the file it is greedy.

    Raises:
        ValueError: an entry of the wrong kind.
    """
    path = Path(folder) / FILE
    config = read_json_if_there(path) or {}
    kinds = {"temperature": NUMBER, "top_p": POSITIVE, "min_p": NUMBER, "top_k": NATURAL}
    kinds |= {"repetition_penalty": POSITIVE, "do_sample": FLAG, "num_beams": COUNT}
    check_entries(config, kinds, str(path))
    ignored = [
        f"{name} = {config[name]!r}"
        for name, harmless in _UNREAD.items()
        if config.get(name) is not None and config[name] not in harmless and config[name] != []
    ]
    given = {field.name: config.get(field.name) for field in fields(Sampling) if field.name != "seed"}
    if config.get("do_sample"):
        defaults = Sampling(temperature=1.0, top_k=50)
    else:
        defaults, given = Sampling(), {"repetition_penalty": given["repetition_penalty"]}
    try:
        return defaults.with_given(**given), ignored
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def processed(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """fp32 scores [b, v] of `logits`; -inf for tokens that are never taken.

    Args:
        logits: [b, v].
        sampling: which processors are used.
        seen: bool [b, v], True for tokens of the row so far; needed for a penalty.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1 and seen is not None:
        penalty = sampling.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if sampling.temperature == 0:
        return scores
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    if sampling.top_k:
        least = torch.topk(scores, min(sampling.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1:
        ranked, order = scores.sort(descending=False)
        removed = ranked.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        removed[:, -1] = False
        scores = scores.masked_fill(removed.scatter(1, order, removed), -torch.inf)
    if sampling.min_p:
        chances = scores.softmax(-1)
        scores = scores.masked_fill(chances < sampling.min_p * chances.amax(-1, keepdim=True), -torch.inf)
    return scores


def choose(
    logits: Tensor, sampling: Sampling, draws: Sequence[torch.Generator], seen: Tensor | None = None
) -> Tensor:
    """Next token [b] of every row.

    Args:
        logits: [b, v].
        sampling: how tokens are chosen.
        draws: one generator per row, on the host.
        seen: as in `processed`.
    """
    scores = processed(logits, sampling, seen)
    if sampling.temperature == 0:
        return scores.argmax(-1)
    # From the likeliest on, so that equal draws give equal tokens whatever order the vocabulary has.
    ranked, order = scores.sort(descending=True, stable=True)
    total = ranked.softmax(-1).cumsum(-1)
    uniform = torch.cat([torch.rand(1, generator=draw) for draw in draws]).to(logits.device)
    picked = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)
    last = ranked.isfinite().sum(-1, keepdim=True) - 1
    return order.gather(1, picked.minimum(last)).squeeze(1)
