"""A step of the recipe on the fake GPU: forward, backward, clipping and optimizer of a few batches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from rehearsal.cost import tensors_in
from rehearsal.machine import GPU, fake_gpu
from rehearsal.meter import Meter
from rehearsal.work import Case, Sample, as_sharded, build, sample_of, to_gpu
from torchtune_qwenvl.data.loader import Batch
from torchtune_qwenvl.distributed import World, kept_whole
from torchtune_qwenvl.modules import attention, layers
from torchtune_qwenvl.modules.experts import grouped
from torchtune_qwenvl.recipes.finetune import FinetuneRecipe
from torchtune_qwenvl.training.step.batches import collate_for
from torchtune_qwenvl.training.step.optim import build_optimizer, gradients_of
from torchtune_qwenvl.training.step.parts import GradientCheck, gradient_norm, trainable_by_part
from torchtune_qwenvl.training.watch.flops import FlopCounter
from torchtune_qwenvl.training.watch.metrics import Work

CONFIG = Path(str(files("torchtune_qwenvl.configs"))) / "base.yaml"


@dataclass
class Findings:
    """What a step did.

    Attributes:
        attention: "kernel dtype" -> calls, of both towers.
        experts: dtype -> grouped products.
        backends: attention's library -> calls.
        waits: where the host waits for the device -> times.
        without_gradient: trainable parameters that got none.
        kernels, bytes, flops, seconds: by kernel; seconds by the roofline.
        peak: bytes of CUDA memory in use, at most.
        copies: copies from the host.
        model_flops: useful operations, those that MFU counts.
        optimizer_seconds: what of `seconds` comes after the last backward pass: clipping and the optimizer.
    """

    attention: dict[str, int] = field(default_factory=dict)
    experts: dict[str, int] = field(default_factory=dict)
    backends: dict[str, int] = field(default_factory=dict)
    waits: dict[str, int] = field(default_factory=dict)
    without_gradient: list[str] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak: int = 0
    copies: int = 0
    model_flops: float = 0.0
    optimizer_seconds: float = 0.0

    @property
    def cost(self) -> dict[str, float]:
        """What the table of ceilings holds."""
        return {
            "kernels": sum(self.kernels.values()),
            "gigabytes": round(sum(self.bytes.values()) / 1e9, 2),
            "peak_gib": round(self.peak / 2**30, 3),
        }


class Rehearsed(FinetuneRecipe):
    """The recipe's step, with a model that is given."""

    def __init__(self, model: Any, batches: Sequence[Batch]) -> None:
        self.cfg = OmegaConf.merge(OmegaConf.load(CONFIG), {"clip_grad_norm": 1.0})
        attention.use_attention_backend(self.cfg.attention_backend)
        self.world, self.model = World(GPU), model.train()
        self.compute = torch.bfloat16
        self.autocast = lambda: torch.autocast("cuda", torch.bfloat16)
        self.transform = mock.Mock(pad_id=0)
        self.flops = FlopCounter(model)
        self.members: list[str] = []
        self.scheduler = None
        self.offloading = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
        # Counted before tensors are fake: it reads lengths on the host.
        self.works = {id(batch.inputs["tokens"]): super(Rehearsed, self).work_of(batch) for batch in batches}

    def work_of(self, batch: Batch) -> Work:
        """As counted before."""
        return self.works[id(batch.inputs["tokens"])]

    def step_without_reading(self, batches: list[Batch]) -> None:
        """All of `step` but its one read, by which the host decides whether the step is taken."""
        work = Work.total((self.work_of(batch) for batch in batches), self.world)
        self.backward(batches, work)
        gradients = gradients_of(self.optimizer)
        norm = gradient_norm(gradients.values())
        self.check_gradients(gradients, labelled=work.labelled, images=work.images)
        self.update(norm)
        self.optimizer.zero_grad(set_to_none=True)

    def build_optimizer(self) -> None:
        """Fused AdamW with its state, as after the first step."""
        self.parts = trainable_by_part(self.model)
        node = OmegaConf.create({"_component_": "torch.optim.AdamW", "lr": 1e-5, "fused": True})
        self.optimizer = build_optimizer(node, self.parts, dict.fromkeys(self.parts, 1e-5))
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                moments = {"exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}
                self.optimizer.state[p] = {"step": torch.zeros((), device=GPU), **moments}
        self.check_gradients = GradientCheck(self.parts)


def rehearse(case: Case, batches: Sequence[Sequence[Sample]], padding_free: bool = True) -> Findings:
    """One optimizer step over these batches, each a list of samples."""
    pinned: dict[int, torch.Tensor] = {}
    model = build(case)
    join = collate_for(model, padding_free)
    made = [_batch(join([sample_of(model, sample) for sample in samples])) for samples in batches]
    recipe = Rehearsed(model, made)
    if case.sharded:
        as_sharded(model, kept_whole(model))
    with fake_gpu(pinned):
        to_gpu(model, GPU)
        recipe.build_optimizer()
        made = [batch.pin_memory() for batch in made]
        with Meter(pinned) as meter, _Watch(meter, recipe) as watch:
            for tensor in tensors_in([list(model.parameters()), list(recipe.optimizer.state.values())]):
                meter.track(tensor)
            recipe.step_without_reading(made)
    found = watch.findings
    found.backends = dict(meter.backends)
    found.waits, found.copies, found.peak = dict(meter.waits), meter.copies, meter.peak
    totals = meter.totals
    found.kernels, found.bytes = dict(totals.kernels), dict(totals.bytes)
    found.flops, found.seconds = dict(totals.flops), dict(totals.seconds)
    found.model_flops = sum(work.flops for work in recipe.works.values())
    return found


class _Watch:
    """Records what attention and the experts' products get, and which parameters have gradients."""

    def __init__(self, meter: Meter, recipe: Rehearsed) -> None:
        self.findings = Findings()
        self._meter, self._recipe = meter, recipe
        self._attend, self._multiply = layers.segment_attention, grouped.F.grouped_mm
        self._check = recipe.check_gradients
        self._before = 0.0
        self._attention: Counter[str] = Counter()
        self._experts: Counter[str] = Counter()

    def __enter__(self) -> "_Watch":
        self._patches = [
            mock.patch.object(layers, "segment_attention", self.attend),
            mock.patch.object(grouped.F, "grouped_mm", self.multiply),
            mock.patch.object(attention, "varlen_attn", self.varlen(attention.varlen_attn)),
            mock.patch.object(F, "scaled_dot_product_attention", _flash),
        ]
        for patch in self._patches:
            patch.start()
        self._recipe.check_gradients = self.check
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()
        self.findings.optimizer_seconds = sum(self._meter.totals.seconds.values()) - self._before
        self.findings.attention, self.findings.experts = dict(self._attention), dict(self._experts)

    def attend(self, q: torch.Tensor, k: Any, v: Any, segments: Any, *rest: Any) -> torch.Tensor:
        self._meter.segments = segments.lengths
        self._kernel = "sdpa"
        out = self._attend(q, k, v, segments, *rest)
        dtypes = "/".join(sorted({str(x.dtype).removeprefix("torch.") for x in (q, k, v)}))
        self._attention[f"{self._kernel} {dtypes}"] += 1
        return out

    def varlen(self, kernel: Any) -> Any:
        def called(*args: Any, **options: Any) -> Any:
            self._kernel = "varlen"
            return kernel(*args, **options)

        return called

    def multiply(self, a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
        self._experts[str(a.dtype).removeprefix("torch.")] += 1
        return self._multiply(a, b, **options)

    def check(self, gradients: Any, **counts: Any) -> None:
        named = self._recipe.model.named_parameters()
        self._before = sum(self._meter.totals.seconds.values())
        self.findings.without_gradient = [n for n, p in named if p.requires_grad and p not in gradients]
        self._check(gradients, **counts)


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """SDPA chooses a kernel by the driver's answers; here it is a plain product of fake tensors."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def _batch(inputs: dict[str, Any]) -> Batch:
    return Batch(inputs, samples=1, tokens=inputs["tokens"].numel())
