"""Our parameters -> the tensors of a checkpoint folder, one at a time: LoRA merged, projections fused."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from torchtune_qwenvl.checkpoints.embedding_rows import grown
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.models.weight_table import Slice, WeightTable, as_stored
from torchtune_qwenvl.modules.adapters.lora import is_adapter


def lora_scaling(model: nn.Module) -> dict[str, float]:
    """Name of each module with LoRA or DoRA -> the factor alpha / rank of its adapter's output."""
    return {
        name: float(module.scaling if hasattr(module, "scaling") else module.alpha / module.rank)
        for name, module in model.named_modules()
        if hasattr(module, "lora_a")
    }


class MergedWeights:
    """The weights of a trained model in the form of a checkpoint folder.

    Args:
        state: our parameters by name, including adapters. Each is read once per write, so this may be a
            mapping that gathers a sharded tensor when it is read.
        scaling: the result of `lora_scaling`; empty if there are no adapters or they are merged already.
        table: the family's names.
    """

    def __init__(self, state: Mapping[str, Tensor], scaling: Mapping[str, float], table: WeightTable) -> None:
        self.state, self.scaling, self.table = state, scaling, table
        self.names = frozenset(state)
        self._stacks: dict[str, Tensor] = {}

    def check(self, files: CheckpointFolder) -> None:
        """Raise a ValueError unless `files` has a tensor for every parameter but adapters, and no other."""
        room: set[str] = set()
        for name, _ in files.entries():
            ours = self._ours(name)
            if not self._has(ours):
                if self.table.carries(name):
                    continue
                raise ValueError(
                    f"{files.path}: its tensor {name} has no counterpart in the model; pass the folder that "
                    "the model was loaded from as source"
                )
            room.update(ours)
        if homeless := sorted(name for name in self.names - room if not is_adapter(name)):
            raise ValueError(
                f"{files.path} has no tensor for {len(homeless)} parameters of the model, {homeless[0]} "
                "among them; pass the folder that the model was loaded from as source"
            )

    def tensors(self, files: CheckpointFolder, rows: int | None = None) -> Iterator[Tensor]:
        """Our values for the tensors of `files`, in their order and shape, in our dtype; computed lazily.

        Args:
            files: the source.
            rows: of embeddings and head, if there are more than in `files`.
        """
        for name, stored in files.entries():
            if not self._has(self._ours(name)):  # carried: `check` has passed
                yield files.read(name)
                continue
            entry = grown(name, stored, self.table, rows)
            if found := self.table.slice_of(name):
                joined = self._slice(*found)
            else:
                parts = [self.weight(our) for our in self._ours(name)]
                joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            if joined.numel() != torch.Size(entry.shape).numel():
                raise ValueError(
                    f"{files.path}: {name} has shape {list(entry.shape)}, ours {list(joined.shape)}"
                )
            yield as_stored(joined, entry.shape)

    @torch.no_grad()
    def weight(self, name: str) -> Tensor:
        """The parameter `name`, with its LoRA or DoRA merged if it has any; computed in fp32."""
        module = name.removesuffix(".weight")
        if module == name or module not in self.scaling:
            return self.state[name].detach()
        a, b = self.state[f"{module}.lora_a.weight"].float(), self.state[f"{module}.lora_b.weight"].float()
        weight = self.state[name].float() + self.scaling[module] * (b @ a)
        if f"{module}.magnitude" in self.names:
            magnitude = self.state[f"{module}.magnitude"].float()
            weight *= (magnitude / torch.linalg.norm(weight, dim=1)).unsqueeze(1)
        return weight

    def _slice(self, expert: int, piece: Slice) -> Tensor:
        """An expert's part of a stack. The stack is merged once and kept: files hold its experts in a row."""
        if piece.ours not in self._stacks:
            while len(self._stacks) > 1:
                self._stacks.pop(next(iter(self._stacks)))
            self._stacks[piece.ours] = self.weight(piece.ours)
        return self._stacks[piece.ours][expert].chunk(piece.count)[piece.index]

    def _has(self, ours: tuple[str, ...]) -> bool:
        return bool(ours) and self.names.issuperset(ours)

    def _ours(self, file_name: str) -> tuple[str, ...]:
        """Our names for a file's tensor; if the model ties the head, that of the embeddings."""
        ours = self.table.ours(file_name)
        return tuple(name if name in self.names else self.table.tied.get(name, name) for name in ours)
