"""Generate text from images, videos and prompts: one or a batch, greedy or sampled, whole or token by token.

    samples = [transform({"messages": messages}, inference=True) for messages in prompts]
    rows = generate(model, samples, pad_id=transform.pad_id, stop_tokens=transform.stop_tokens)
    texts = [transform.decode(row) for row in rows]

Rows of a batch are right-padded, attend neither to each other nor to padding, and each row has its own random
generator. So a row gives the same tokens alone and in any batch. For a sharded model, all ranks must call
with the same prompts; all take the tokens of rank 0, so that they stop together.

b rows, s tokens of the longest prompt, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.generation.sampling import GREEDY, Sampling, choose
from torchtune_qwenvl.modules.batch import on_device
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


def generate(
    model: VisionLanguageModel,
    samples: Sequence[Mapping[str, Any]],
    *,
    pad_id: int,
    stop_tokens: Collection[int],
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    use_cache: bool = True,
) -> list[list[int]]:
    """Continue every prompt until a stop token or `max_new_tokens`.

    Args:
        model: on its device, in eval mode.
        samples: prompts, from the transform with inference=True; images may have different sizes and prompts
            different lengths.
        pad_id: padding for shorter rows.
        stop_tokens: a row ends before any of these.
        max_new_tokens: maximum number of new tokens per row.
        sampling: how tokens are chosen; greedy by default.
        use_cache: keep keys and values; without, the whole row is computed again for every token.

    Returns:
        New token ids of every row, without the stop token.
    """
    rows: list[list[int]] = [[] for _ in samples]
    for step in stream(
        model,
        samples,
        pad_id=pad_id,
        stop_tokens=stop_tokens,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        use_cache=use_cache,
    ):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    return rows


@torch.no_grad()
def stream(
    model: VisionLanguageModel,
    samples: Sequence[Mapping[str, Any]],
    *,
    pad_id: int,
    stop_tokens: Collection[int],
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    use_cache: bool = True,
) -> Iterator[list[int | None]]:
    """As `generate`, but yields after each step: one new token per row, None for rows that have ended."""
    batch, lengths = _collate_prompts(model, samples, pad_id)
    state: _Decoding = (_Cached if use_cache else _Uncached)(model, batch, lengths, max_new_tokens)
    draws = [torch.Generator().manual_seed(sampling.seed + row) for row in range(len(samples))]
    going = [True] * len(samples)
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    logits = state.first()
    seen = None if sampling.repetition_penalty == 1 else _seen(logits, samples)
    for step in range(max_new_tokens):
        tokens = choose(logits, sampling, draws, seen)
        if sharded:  # ranks may differ in the last bit, and must not stop at different steps
            torch.distributed.broadcast(tokens, src=0)
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        chosen = tokens.tolist()
        going = [on and token not in stop_tokens for on, token in zip(going, chosen, strict=True)]
        if not any(going):
            return
        yield [token if on else None for on, token in zip(going, chosen, strict=True)]
        if step + 1 < max_new_tokens:
            logits = state.after(tokens)


def _seen(logits: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
    """bool [b, v]: the tokens of every row's prompt."""
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    for row, sample in zip(seen, samples, strict=True):
        row[torch.as_tensor(sample["tokens"], device=row.device)] = True
    return seen


class _Decoding(Protocol):
    """Gives logits [b, v] of the first new token, then of each token after a chosen one."""

    def first(self) -> Tensor: ...

    def after(self, tokens: Tensor) -> Tensor: ...


class _Cached:
    """Computes the prompt once, then one token per row."""

    def __init__(
        self, model: VisionLanguageModel, batch: dict[str, Any], lengths: list[int], new_tokens: int
    ) -> None:
        self.model, self.batch = model, batch
        self.next_position = _next_positions(batch["input_pos"], lengths)
        self.cache = model.make_cache(lengths, batch["tokens"].shape[1] + new_tokens)

    def first(self) -> Tensor:
        return self.model(**self.batch, cache=self.cache)[:, -1]

    def after(self, tokens: Tensor) -> Tensor:
        positions = self.next_position[:, None, None].expand(-1, 1, 3)
        self.next_position = self.next_position + 1
        return self.model(tokens[:, None], input_pos=positions, cache=self.cache)[:, -1]


class _Uncached:
    """Computes the whole row for every token."""

    def __init__(
        self, model: VisionLanguageModel, batch: dict[str, Any], lengths: list[int], new_tokens: int
    ) -> None:
        self.model, self.batch = model, batch
        self.next_position = _next_positions(batch["input_pos"], lengths)
        self.lengths = torch.tensor(lengths, device=batch["tokens"].device)
        self.rows = torch.arange(len(lengths), device=batch["tokens"].device)
        # By row and column, because rows grow. Generated tokens are text, even if one is a placeholder's id.
        visual, s = batch.pop("layout")["visual"], batch["tokens"].shape[1]
        self.visual = visual // s, visual % s

    def first(self) -> Tensor:
        rows, columns = self.visual
        layout = {"visual": rows * self.batch["tokens"].shape[1] + columns}
        return self.model(**self.batch, layout=layout)[self.rows, self.lengths - 1]

    def after(self, tokens: Tensor) -> Tensor:
        for name, value in (("tokens", tokens), ("input_pos", self.next_position[:, None])):
            old = self.batch[name]
            longer = torch.cat([old, old[:, -1:]], dim=1)
            longer[self.rows, self.lengths] = value
            self.batch[name] = longer
        self.next_position, self.lengths = self.next_position + 1, self.lengths + 1
        return self.first()


def _collate_prompts(
    model: VisionLanguageModel, samples: Sequence[Mapping[str, Any]], pad_id: int
) -> tuple[dict[str, Any], list[int]]:
    """Right-padded batch on the model's device, and the prompts' lengths."""
    inputs = collate(samples, padding_idx=pad_id, placeholders=model.placeholders)
    del inputs["labels"]
    return on_device(inputs, next(model.parameters()).device), [len(sample["tokens"]) for sample in samples]


def _next_positions(input_pos: Tensor, lengths: list[int]) -> Tensor:
    """Position of the first new token, [b]: one past the largest position of the prompt, on all axes."""
    return torch.stack([row[:n].max() + 1 for row, n in zip(input_pos, lengths, strict=True)])
