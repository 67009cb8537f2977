"""More rows of embeddings and head than a folder has: for tokens that were added to its tokenizer.

New rows start as the mean of the old ones, so that a new token begins as an average one and its logit as the
average logit (transformers draws around that mean, `mean_resizing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchtune_qwenvl.checkpoints.shards import Entry, Shard
from torchtune_qwenvl.json_files import read_json_if_there
from torchtune_qwenvl.models.build import RESIZED_FROM
from torchtune_qwenvl.models.weight_table import WeightTable

if TYPE_CHECKING:
    from torchtune_qwenvl.checkpoints.folder import CheckpointFolder

EMBEDDINGS = "decoder.tok_embeddings.weight"
PER_TOKEN = (EMBEDDINGS, "decoder.output.weight")  # our weights that have one row per token


@dataclass(frozen=True)
class GrownWeight:
    """A matrix with one row per token that has more rows than its tensor `name` in `files`."""

    files: CheckpointFolder
    name: str
    stored_rows: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) in the file's dtype; those that the file lacks are the mean of the others."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        stored = self.files.read(self.name, min(start, self.stored_rows), min(stop, self.stored_rows))
        n_new = stop - max(start, self.stored_rows)
        if n_new <= 0:
            return stored
        mean = self.files.read(self.name).float().mean(dim=0, keepdim=True).to(stored.dtype)
        return torch.cat([stored, mean.expand(n_new, -1)])


def resized_rows(model: nn.Module) -> int | None:
    """The rows of a model's embeddings if they were resized when it was built, else None."""
    config = getattr(model, "config", {})
    return config["text_config"]["vocab_size"] if RESIZED_FROM in config else None


def grows(our_name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a stored tensor becomes our parameter by getting more rows for tokens."""
    return our_name in PER_TOKEN and stored[1:] == tuple(wanted[1:]) and stored[0] < wanted[0]


def grown(name: str, entry: Entry, table: WeightTable, rows: int | None) -> Entry:
    """A file's tensor with `rows` rows if it has one per token; None: as it is."""
    if rows is None or not set(table.ours(name)) & set(PER_TOKEN):
        return entry
    return replace(entry, shape=(rows, *entry.shape[1:]))


def grown_shard(shard: Shard, table: WeightTable, rows: int | None) -> Shard:
    """`grown` for every tensor of a file."""
    entries = {name: grown(name, entry, table, rows) for name, entry in shard.entries.items()}
    return replace(shard, entries=entries)


def grown_config(config: dict[str, Any], rows: int | None) -> dict[str, Any]:
    """config.json with `rows` as its vocab_size, wherever it says one; None: as it is."""
    if rows is None:
        return config
    changed = {**config, "vocab_size": rows} if "vocab_size" in config else dict(config)
    if "vocab_size" in config.get("text_config", {}):
        changed["text_config"] = {**config["text_config"], "vocab_size": rows}
    return changed


def check_token_ids(folder: Path, rows: int) -> None:
    """Raise a ValueError if the folder's tokenizer has a token without a row in the embeddings.

    Args:
        folder: a checkpoint folder; without tokenizer files nothing is checked.
        rows: of the model's embeddings.
    """
    _check(str(folder), _tokens(folder), rows)


def check_transform(transform: Any, model: nn.Module) -> None:
    """`check_token_ids` for the tokenizer of a transform, which may be another than the folder's.

    Args:
        transform: a torchtune tokenizer; one that does not name its special tokens is not checked.
        model: with token embeddings.
    """
    rows = len(dict(model.named_parameters())[EMBEDDINGS])
    _check("the config's tokenizer", getattr(transform, "special_tokens", None) or {}, rows)


def _check(where: str, tokens: Mapping[str, int], rows: int) -> None:
    beyond = [name for name, number in tokens.items() if number >= rows]
    if not beyond:
        return
    highest = max(tokens.values())
    named = ", ".join(f"{name!r} ({tokens[name]})" for name in beyond[:3])
    raise ValueError(
        f"{where}: {len(beyond)} tokens beyond the model's {rows} rows of embeddings, "
        f"{named}{' among them' if len(beyond) > 3 else ''}: set resize_embeddings to at least {highest + 1} "
        "(model.resize_embeddings in a config); new rows start as the mean of the others"
    )


def _tokens(folder: Path) -> dict[str, int]:
    """Every token of a folder's tokenizer files with its id."""
    whole = read_json_if_there(folder / "tokenizer.json") or {}
    tokens: dict[str, int] = {}
    if isinstance(vocabulary := whole.get("model", {}).get("vocab"), dict):
        tokens |= vocabulary
    else:
        tokens |= read_json_if_there(folder / "vocab.json") or {}
    tokens |= {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
    tokens |= read_json_if_there(folder / "added_tokens.json") or {}
    listed = (read_json_if_there(folder / "tokenizer_config.json") or {}).get("added_tokens_decoder", {})
    return tokens | {token["content"]: int(number) for number, token in listed.items()}
