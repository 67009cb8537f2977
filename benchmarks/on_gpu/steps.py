"""Training steps: speed and memory, waits for the device, compiled against eager, savers, fully_shard."""

import gc
import math
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torchtune.modules import TransformerSelfAttentionLayer

from on_gpu.models import BY_NAME, MODELS, Model
from on_gpu.recipe import Measured, free
from on_gpu.rows import MISS, OK, Row, held
from on_gpu.setting import Measurement, Setting
from torchtune_qwenvl.distributed import kept_whole
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4
from torchtune_qwenvl.training.step.batches import work_of
from torchtune_qwenvl.training.step.optim import gradients_of
from torchtune_qwenvl.training.step.parts import gradient_norm
from torchtune_qwenvl.training.watch.metrics import Meter, Work, peak_flops

SMALLEST = MODELS[0]
LORA = BY_NAME["Qwen2.5-VL-7B LoRA"]
WARM, TIMED = 3, 8  # steps
FLOAT8 = "compiled, float8"
WAYS = {
    "eager": ("compile=false",),
    "compiled": ("compile=true",),
    FLOAT8: ("compile=true", "float8=tensorwise"),
}
SAVERS = {
    "LoRA, all layers recomputed": (),
    "with offloading": ("activation_offloading=true",),
    "QLoRA": ("model.quantize_base=true",),
}
SAME = 2e-2  # how far losses of two ways to compute the same in bf16 may be apart, relative


def measurements(setting: Setting) -> Iterator[Measurement]:
    """Each model eager and compiled, which in a rehearsal is torch's eager backend, and some in float8."""
    for model in MODELS:
        found: dict[str, float] = {}
        for way, overrides in WAYS.items():
            if way != FLOAT8 or model.goal is not None:
                yield f"{model.name}, {way}", partial(_speed, setting, model, way, overrides, found)


def _speed(
    setting: Setting, model: Model, way: str, overrides: tuple[str, ...], losses: dict[str, float]
) -> Row:
    setting.restart_peak()
    recipe = Measured(model, setting, overrides)
    try:
        figures = driven(recipe, setting)
    finally:
        free(recipe)
        gc.collect()
    losses[way] = figures["first loss"]
    row = Row("steps", f"{model.name}, {way}", figures=figures)
    if not math.isfinite(figures["last loss"]):
        row.status, row.note = MISS, "the loss is not finite"
    elif way != "eager" and "eager" in losses:
        row = _judged(row, model, setting, abs(losses[way] / losses["eager"] - 1), way == FLOAT8)
    return row


def _judged(row: Row, model: Model, setting: Setting, apart: float, float8: bool) -> Row:
    """A compiled step computes what the eager one computes, and reaches the goal."""
    limit = 2 * SAME if float8 else SAME
    misses = [f"the loss and the eager one differ by {apart:.1e}"] if apart > limit else []
    reached = row.figures.get("MFU", 0.0)
    if model.goal is not None and not setting.rehearse and reached < model.goal:
        misses.append(f"MFU {100 * reached:.0f} %, the goal is {100 * model.goal:.0f} %")
    row.status, row.note = (MISS, "; ".join(misses)) if misses else (OK, "")
    return row


def driven(recipe: Measured, setting: Setting) -> dict[str, float]:
    """A few steps to warm up, then the figures of a few more, with images from disk."""
    warm, timed = setting.size(WARM, 1), setting.size(TIMED, 1)
    batches = recipe.batches()
    first = last = math.nan
    for number in range(warm):
        step = recipe.step([next(batches)])
        first = step.loss.item() if number == 0 else first
    setting.wait()
    meter = Meter(recipe.world, peak_flops(setting.device), ())
    alone = 0.0
    for _ in range(timed):
        with meter.waiting():
            batch = next(batches)
        alone += work_of(batch, recipe.transform.pad_id, _DecoderAlone(recipe.flops)).flops  # type: ignore[arg-type]
        step = recipe.step([batch])
        meter.add(step.work)
        last = step.loss.item()
    setting.wait()
    figures = {"first loss": first, "last loss": last}
    return figures if setting.rehearse else figures | _rates(meter.report(), alone, setting)


def _rates(report: dict[str, float], alone: float, setting: Setting) -> dict[str, float]:
    seconds = report["seconds_per_step"]
    peak = peak_flops(setting.device)
    figures = {
        "tokens/s": report["tokens_per_second"],
        "images/s": report["images_per_second"],
        "s per step": seconds,
        "data wait": report["data_wait_seconds"] / seconds,
        "peak GB": setting.peak_gb(),
    }
    if peak is not None:
        figures |= {"MFU": report["mfu"], "MFU of the LLM": alone / TIMED / seconds / peak}
    return figures


class _DecoderAlone:
    """A `FlopCounter` that leaves the encoder out."""

    def __init__(self, counter: Any) -> None:
        self._counter = counter

    def __call__(self, lengths: Any, labelled: int, *_: object) -> float:
        return self._counter(lengths, labelled)


def waits(setting: Setting) -> Iterator[Measurement]:
    """A step but for its one read must not wait for the device."""
    yield "a step that never waits for the device", partial(_never_waits, setting)


def _never_waits(setting: Setting) -> Row:
    recipe = Measured(BY_NAME["Qwen3-VL-30B-A3B LoRA, 8 layers"], setting, ("compile=false",))
    batches = recipe.batches()
    recipe.step([next(batches)])
    batch = next(batches)
    if setting.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        work = Work.total([recipe.work_of(batch)], recipe.world)
        recipe.backward([batch], work)
        gradients = gradients_of(recipe.optimizer)
        recipe.update(gradient_norm(gradients.values()))
        recipe.optimizer.zero_grad(set_to_none=True)
    finally:
        if setting.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    free(recipe)
    return Row("sync", "a step that never waits for the device")


def savers(setting: Setting) -> Iterator[Measurement]:
    """Peak memory and speed of what saves memory."""
    base: dict[str, float] = {}
    for name, overrides in SAVERS.items():
        yield name, partial(_saver, setting, name, overrides, base)


def _saver(setting: Setting, name: str, overrides: tuple[str, ...], base: dict[str, float]) -> Row:
    setting.restart_peak()
    words = ("activation_checkpointing.decoder=true", "compile=false", *overrides)
    recipe = Measured(LORA, setting, words)
    quantised = any(is_nf4(parameter) for parameter in recipe.model.parameters())
    try:
        figures = driven(recipe, setting)
    finally:
        free(recipe)
        gc.collect()
    base.setdefault("peak GB", figures.get("peak GB", 0.0))
    row = Row("savers", name, figures=figures)
    if not math.isfinite(figures["last loss"]):
        row.status, row.note = MISS, "the loss is not finite"
    elif quantised != (name == "QLoRA"):
        row.status, row.note = MISS, "no weight is in NF4" if name == "QLoRA" else "a weight is in NF4"
    elif overrides and not setting.rehearse and figures["peak GB"] >= base["peak GB"]:
        row.status, row.note = MISS, f"saves nothing: {base['peak GB']:.1f} GB without it"
    return row


def sharded(setting: Setting) -> Iterator[Measurement]:
    """FSDP2 with one rank computes what the model computes without it."""
    yield "fully_shard, one rank", partial(_sharded, setting)


def _sharded(setting: Setting) -> Row:
    figures = {}
    for name, wrap in (("plain", lambda model: None), ("sharded", partial(_shard_alone, setting))):
        recipe = Measured(SMALLEST, setting, ("compile=false",), sharding=wrap)
        step = recipe.step([next(recipe.batches())])
        figures |= {f"loss, {name}": step.loss.item(), f"norm, {name}": step.grad_norm.item()}
        free(recipe)
        gc.collect()
    dist.destroy_process_group()  # with one in use a model takes itself to be one of many ranks
    for what in ("loss", "norm"):
        figures[f"{what} apart"] = abs(figures[f"{what}, sharded"] / figures[f"{what}, plain"] - 1)
    return held("shard", "fully_shard, one rank", figures, {"loss apart": SAME, "norm apart": 5 * SAME})


def _shard_alone(setting: Setting, model: Any) -> None:
    """What `distributed.shard` does for many ranks, for one, where it does nothing."""
    if not dist.is_initialized():
        with socket.socket() as free_port:
            free_port.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free_port.getsockname()[1]}"
        backend = "nccl" if setting.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=address, rank=0, world_size=1)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(setting.device.type, (1,))
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": kept_whole(model)}
    for module in list(model.modules()):
        if isinstance(module, TransformerSelfAttentionLayer):
            fully_shard(module, **options)
    fully_shard(model, **options)
