"""The model of a config as the recipe builds it, without weights, and its layers in the forward pass's order.

It is built on the meta device: sizes and dtypes, no memory. Published sizes need no checkpoint folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torchtune.config import instantiate

from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.distributed import kept_whole
from torchtune_qwenvl.estimating.cards import Card
from torchtune_qwenvl.estimating.layers import layer_cost
from torchtune_qwenvl.estimating.tally import HALF, WIDE, Tally, stored, trains
from torchtune_qwenvl.estimating.workload import Workload
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.step.checkpointing import Recomputed, checkpoint_activations
from torchtune_qwenvl.training.step.precision import compute_dtype, set_parameter_dtypes

STATISTICS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}  # change no size


def build(cfg: DictConfig) -> VisionLanguageModel:
    """The model of a config on the meta device, with its dtypes and with the layers that are recomputed.

    Raises:
        ValueError: the config is another recipe's, has no model or computes in fp32, or its model needs a
            folder that is not there.
    """
    if cfg.recipe != "finetune":
        raise ValueError(f"estimate: expected a config of finetune, got one of {cfg.recipe}")
    if cfg.get("model") is None:
        raise ValueError("estimate: the config has no model: give one of the packaged configs, or model=...")
    if cfg.dtype != "bf16":
        raise ValueError(f"estimate: expected dtype: bf16, got {cfg.dtype}: set dtype=bf16")
    with torch.device("meta"):
        model: VisionLanguageModel = instantiate(cfg.model, **_arguments(cfg))
    masters = not cfg.optimizer.get("bf16_stochastic_round")
    set_parameter_dtypes(model, compute_dtype(cfg.dtype), masters=masters)
    checkpoint_activations(model, cfg.activation_checkpointing)
    return model


def _arguments(cfg: DictConfig) -> dict[str, Any]:
    """What the checkpoint folder adds to the model, if it is there."""
    folder = Path(cfg.checkpoint_dir or "")
    if cfg.checkpoint_dir and any(folder.glob("*.safetensors")):
        with CheckpointFolder(folder) as files:
            return files.model_arguments()
    return dict(STATISTICS)


@dataclass(frozen=True)
class Weights:
    """Parameters of a layer or of everything outside of the layers, in bytes.

    Attributes:
        stored: as they are kept, on all GPUs together.
        whole: of `stored`, what every GPU keeps whole.
        gathered: as FSDP gathers them, trained ones in bf16.
        casts: bf16 copies of trained matrices in fp32, which autocast makes on a single GPU.
        trained: number of values that train.
        largest: values of the largest matrix that trains.
    """

    stored: float
    whole: float
    gathered: float
    casts: float
    trained: float
    largest: float

    @classmethod
    def of(cls, parameters: list[nn.Parameter], whole: set[nn.Parameter]) -> Weights:
        """Those of these parameters; `whole` are not sharded."""
        ours = [p for p in parameters if p.requires_grad]
        matrices = [p.numel() for p in ours if p.dim() > 1]
        return cls(
            stored=sum(map(stored, parameters)),
            whole=sum(stored(p) for p in parameters if p in whole),
            gathered=sum(stored(p) if is_nf4(p) else HALF * p.numel() for p in parameters if p not in whole),
            casts=float(sum(HALF * p.numel() for p in ours if p.dim() > 1 and p.element_size() == WIDE)),
            trained=float(sum(p.numel() for p in ours)),
            largest=float(max(matrices, default=0)),
        )


@dataclass(frozen=True)
class Stage:
    """A layer, or a merger of visual tokens, in the order of the forward pass.

    Attributes:
        cost: what it takes and keeps if it is not recomputed.
        weights: its parameters.
        recomputed: it keeps its input only.
        input: bytes of that input.
        sharded: FSDP gathers it on its own.
    """

    cost: Tally
    weights: Weights
    recomputed: bool
    input: float
    sharded: bool

    @property
    def held(self) -> float:
        """Bytes between forward and backward pass."""
        return min(self.input, self.cost.kept) if self.recomputed else self.cost.kept


def stages(model: VisionLanguageModel, work: Workload, card: Card, gpus: int) -> Iterator[Stage]:
    """Encoder layers, mergers and decoder layers of a forward pass.

    Args:
        model: from `build`.
        work: what goes through it.
        card: the GPU.
        gpus: how many share the parameters; 1: no FSDP.
    """
    encoder, whole = model.vision_encoder, kept_whole(model)
    begin = [encoder.patch_embed, encoder.patch_norm, encoder.position_embed]
    learns = any(trains(module) for module in begin if module is not None)
    frames = float(sum(t * (h * w) ** 2 for t, h, w in work.grids))
    windows = frames if encoder.window is None else _window_pairs(work, encoder.window)
    for i, layer in enumerate(encoder.layers):
        pairs = frames if encoder.window is None or i in encoder.full_attention else windows
        cost = layer_cost(layer, work.patches, pairs, learns, card, gpus > 1)
        learns = learns or trains(layer)
        yield _stage(layer, cost, work.patches, learns, whole)
    for merger in (encoder.merger, *encoder.deepstack_mergers):
        yield _merger(merger, work, learns, card, gpus, whole)
    learns = learns or trains(encoder) or trains(model.decoder.tok_embeddings)
    causal = sum(n * (n + 1) / 2 for n in work.lengths)
    for layer in model.decoder.layers:
        cost = layer_cost(layer, work.tokens, causal, learns, card, gpus > 1)
        learns = learns or trains(layer)
        yield _stage(layer, cost, work.tokens, learns, whole)


def _stage(layer: Any, cost: Tally, n: int, learns: bool, whole: set[nn.Parameter]) -> Stage:
    width = layer.attn.q_proj.weight.shape[-1]
    recomputed = isinstance(layer.forward, Recomputed) and layer.forward.on and learns
    weights = Weights.of(list(layer.parameters()), whole)
    return Stage(cost, weights, recomputed, float(HALF * n * width), sharded=True)


def _merger(
    merger: nn.Module, work: Workload, learns: bool, card: Card, gpus: int, whole: set[nn.Parameter]
) -> Stage:
    """Linears over visual tokens, one after the other."""
    tally = Tally(card, gpus > 1)
    for module in merger.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or hasattr(module, "lora_b"):
            continue
        tally.linears((module,), work.visual, learns)
        learns = learns or trains(module)
        if learns:
            tally.keep(weight.shape[0], rows=work.visual)
    return Stage(tally, Weights.of(list(merger.parameters()), whole), False, 0.0, sharded=False)


def _window_pairs(work: Workload, window: int) -> float:
    total = 0
    for t, h, w in work.grids:
        sides = [divmod(side // work.merge, window) for side in (h, w)]
        rows, columns = (full * window**2 + rest**2 for full, rest in sides)
        total += t * rows * columns * work.merge**4
    return float(total)
