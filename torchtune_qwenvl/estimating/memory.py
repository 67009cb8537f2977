"""Bytes of a GPU at the fullest moment of a step.

Three kinds of moments can be the fullest: the loss, the backward pass of a layer, and its end, when the last
gradients come. Each is added up, and the largest is the peak. The optimizer's step comes after that and needs
less, because what held the last gradients is free again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchtune_qwenvl.distributed import kept_whole
from torchtune_qwenvl.estimating.model import Stage, Weights
from torchtune_qwenvl.estimating.tally import HALF, WIDE, trains
from torchtune_qwenvl.estimating.workload import Workload
from torchtune_qwenvl.modules.loss import _SCRATCH
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

# Bytes of an optimizer's state per byte of a trained parameter; an unknown one is counted as AdamW.
ADAMW = 2.0
STATES = {
    "torch.optim.SGD": 0.0,
    "torchao.optim.AdamW8bit": 0.52,
    "torchao.optim.AdamW4bit": 0.28,
    "torchao.optim.AdamWFp8": 0.51,
}


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at a moment of a step.

    Attributes:
        moment: which one, in words.
        weights, gradients, optimizer: this GPU's shards.
        activations: what the layers keep, and what the layer in work holds.
        gathered: whole weights that FSDP has gathered, and bf16 copies of weights on a single GPU.
        loss: logits, and their gradients.
    """

    moment: str
    weights: float
    optimizer: float
    gradients: float = 0.0
    activations: float = 0.0
    gathered: float = 0.0
    loss: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """Name -> bytes."""
        names = ("weights", "gradients", "optimizer", "activations", "gathered", "loss")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())


class Moments:
    """The moments of a step of one GPU.

    Args:
        model: from `estimating.model.build`.
        stages: its layers.
        work: a forward pass.
        cfg: the config, a plain dict.
        gpus: how many share the parameters.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        stages: Sequence[Stage],
        work: Workload,
        cfg: Mapping[str, Any],
        gpus: int,
    ) -> None:
        self.stages, self.gpus, self.cfg = stages, gpus, cfg
        whole = kept_whole(model)
        everything = Weights.of(list(model.parameters()), whole)
        inside = {p for module in _layers(model) for p in module.parameters()}
        self.outside = Weights.of([p for p in model.parameters() if p not in inside], whole)
        master = max((p.element_size() for p in model.parameters() if p.requires_grad), default=WIDE)
        self.per_value = master
        optimizer = cfg["optimizer"]
        share = STATES.get(optimizer["_component_"], ADAMW)
        if optimizer.get("momentum"):
            share = 1.0
        self.weights = (everything.stored - everything.whole) / gpus + everything.whole
        self.optimizer = share * master * everything.trained / gpus
        self.all_gradients = 0.0 if cfg["optimizer_in_bwd"] else master * everything.trained / gpus
        self.accumulating = cfg["gradient_accumulation_steps"] > 1
        embeddings = model.decoder.tok_embeddings
        self.vocabulary, self.width = embeddings.weight.shape
        self.embeddings_train = trains(embeddings)
        self.head = next((p for p in model.decoder.output.parameters()), embeddings.weight)
        self.positions, self.chunk = work.labelled, min(work.labelled, model.loss_chunk_tokens)

    def peak(self) -> Memory:
        """The fullest moment."""
        found = [*self._of_loss(), *self._of_layers(), self._at_end()]
        return max(found, key=lambda memory: memory.total)

    def _memory(self, moment: str, gradients: float, **parts: float) -> Memory:
        gradients = self.all_gradients if self.accumulating else gradients
        return Memory(moment, self.weights, self.optimizer, gradients, **parts)

    def _held(self, stages: Sequence[Stage]) -> float:
        """Bytes that these stages keep until their backward pass."""
        offloaded = self.cfg["activation_offloading"]
        return sum(0.0 if offloaded and s.recomputed else s.held for s in stages)

    def _casts(self, stages: Sequence[Stage]) -> float:
        """bf16 copies of weights that these stages keep until their backward pass, on a single GPU."""
        return 0.0 if self.gpus > 1 else sum(s.weights.casts for s in stages if not s.recomputed)

    def _of_loss(self) -> list[Memory]:
        logits = float(HALF * self.chunk * self.vocabulary)
        states = float(HALF * 3 * self.positions * self.width)
        scratch = float(WIDE * min(_SCRATCH["cuda"], self.chunk * self.vocabulary))
        head = self.head.numel() if self.head.requires_grad else 0
        to_head = head * (HALF + (0.0 if self.gpus > 1 else WIDE))
        held = self._held(self.stages)
        if self.gpus > 1:
            forward = backward = self.outside.gathered + self._in_flight(self.stages[-1], 1)
        else:
            forward = sum(s.weights.casts for s in self.stages) + HALF * head
            backward = self._casts(self.stages) + HALF * head
        again = logits + states + scratch
        return [
            self._memory("loss", 0.0, activations=held, gathered=forward, loss=again),
            self._memory("loss", 0.0, activations=held, gathered=backward, loss=again + logits),
            self._memory("loss", 0.0, activations=held, gathered=backward, loss=logits + states + to_head),
        ]

    def _of_layers(self) -> list[Memory]:
        found = []
        for i, stage in enumerate(self.stages):
            inside = stage.cost.kept + stage.cost.extra + stage.cost.dequantised
            held = self._held(self.stages[:i]) + inside + (stage.input if stage.recomputed else 0.0)
            gathered, largest = self._around(i), stage.weights.largest
            if self.gpus == 1:
                held += largest * (HALF + WIDE)
            moment = f"backward pass, layer {i + 1} of {len(self.stages)}"
            after = self._gradients_after(i)
            found.append(self._memory(moment, after, activations=held, gathered=gathered))
        return found

    def _around(self, i: int) -> float:
        """Whole weights while the backward pass is in stage i."""
        if self.gpus == 1:
            return self._casts(self.stages[:i]) + self.stages[i].weights.casts
        trained = self.stages[i].weights.trained  # bf16 gradients, and an fp32 copy that is reduced
        own = (HALF + WIDE) * trained if self.stages[i].sharded else 0.0
        return self.outside.gathered + self._in_flight(self.stages[i], 2) + own + self._of_head(HALF)

    def _in_flight(self, stage: Stage, layers: int) -> float:
        """Layers that FSDP holds whole: the one in work, and the ones that are being gathered."""
        return layers * stage.weights.gathered if stage.sharded else 0.0

    def _of_head(self, size: int) -> float:
        """Bytes of the head's gradient with so many bytes per value."""
        return float(size * self.head.numel()) if self.head.requires_grad else 0.0

    def _gradients_after(self, i: int) -> float:
        """Gradients of the stages after i, and of the head: FSDP reduces those at the end, see `_around`."""
        if not self.all_gradients:
            return 0.0
        values = sum(s.weights.trained for s in self.stages[i + 1 :] if s.sharded or self.gpus == 1)
        head = self._of_head(self.per_value) if self.gpus == 1 else 0.0
        return self.per_value * values / self.gpus + head

    def _at_end(self) -> Memory:
        """The last gradients come: those of the embeddings, with FSDP all that lie outside of the layers."""
        if self.gpus == 1:
            table = WIDE * self.vocabulary * self.width if self.embeddings_train else 0.0
            return self._memory("end of the backward pass", self.all_gradients, gathered=table)
        before = self.all_gradients - self.per_value * self.outside.trained / self.gpus
        reduced = (HALF + WIDE) * self.outside.trained
        return self._memory("end of the backward pass", max(before, 0.0), gathered=reduced)


def _layers(model: VisionLanguageModel) -> list[Any]:
    return [*model.vision_encoder.layers, *model.decoder.layers]
