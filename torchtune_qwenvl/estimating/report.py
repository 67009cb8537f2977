"""The estimate in words, and what to change when it does not fit or when memory is left."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.estimating.cards import GB
from torchtune_qwenvl.estimating.estimate import Estimate, estimate
from torchtune_qwenvl.estimating.workload import Mix
from torchtune_qwenvl.training.step.checkpointing import USABLE

MOST_GPUS = 1024
WORTH_IT = 0.99  # what saves less than a hundredth is not named
SHARES = tuple(step / 20 for step in range(21))  # of the decoder's layers that are recomputed
NAMES = {"gathered": "whole weights", "loss": "logits"}


def report(title: str, found: Estimate) -> str:
    """A table of memory and a few lines about time."""
    work, time = found.work, found.time
    parts = [f"  {NAMES.get(name, name):15}{size / GB:8.2f}" for name, size in found.memory.parts.items()]
    verdict = "fits" if found.fits else f"does not fit: at most {100 * USABLE:.0f} % can be filled"
    transfers = " (FSDP's transfers take longer than computing)" * (time.transferring > time.computing)
    return "\n".join(
        [
            f"{title}: {found.parameters / 1e9:.2f} B parameters, {found.trained / 1e6:,.1f} M of them train",
            f"{work.tokens:,} tokens per GPU and forward pass: {len(work.samples)} conversations, "
            f"{counted(len(work.grids), 'image')} with {counted(work.visual, 'visual token')}, "
            f"{counted(work.labelled, 'labelled token')}",
            "",
            f"memory of a GPU in GB, fullest at: {found.memory.moment}",
            *parts,
            f"  {'total':15}{found.memory.total / GB:8.2f} of {found.card.total / GB:.0f}: {verdict}",
            "",
            "time by the roofline, not measured; what torch.compile saves is not counted",
            f"  {time.batches} x {max(time.computing, time.transferring):.3f} s{transfers}, "
            f"optimizer {time.optimizer:.3f} s: {time.step:.3f} s per step",
            f"  {time.tokens_per_second:,.0f} tokens per second and GPU, MFU {100 * time.mfu:.0f} %",
        ]
    )


def advice(cfg: DictConfig, found: Estimate, gpu: str, mix: Mix) -> str:
    """What fits if this does not, or what is faster and fits as well; empty if there is nothing to say."""
    options = list(_smaller(cfg, found, gpu, mix) if not found.fits else _faster(cfg, found, gpu, mix))
    if not options:
        return ""
    heading = "faster, and fits as well:" if found.fits else "what makes it smaller:"
    width = max(len(words) for words, _ in options)
    return "\n".join([heading, *(f"  {words:{width}}  {_short(one)}" for words, one in options)])


def _short(found: Estimate) -> str:
    verdict = "fits" if found.fits else "does not fit"
    total, speed = found.memory.total / GB, found.time.tokens_per_second
    return f"{total:.1f} GB, {verdict}, {speed:,.0f} tokens/s per GPU"


def _smaller(cfg: DictConfig, found: Estimate, gpu: str, mix: Mix) -> Iterator[tuple[str, Estimate]]:
    for words in _changes(cfg):
        try:
            one = estimate(changed(cfg, words), found.gpus, gpu, mix)
        except ValueError:  # this model does not take it
            continue
        if one.memory.total < WORTH_IT * found.memory.total:
            yield words, one
    gpus = found.gpus
    while gpus < MOST_GPUS:
        gpus *= 2
        more = estimate(cfg, gpus, gpu, mix)
        if more.fits or gpus == MOST_GPUS:
            yield f"--gpus {gpus}", more
            return


def _changes(cfg: DictConfig) -> Iterator[str]:
    """Overrides that need less memory, each by itself."""
    shares = cfg.activation_checkpointing
    model = cfg.model
    learns = [t for t in ("encoder", "decoder") if model.get(f"{t}_trainable", "full") != "frozen"]
    if missing := [tower for tower in learns if float(shares[tower]) < 1]:
        yield " ".join(f"activation_checkpointing.{tower}=true" for tower in missing)
    for key in ("pack_to", "batch_tokens", "batch_size"):
        if cfg[key] is not None and cfg[key] > 1:
            yield f"{key}={cfg[key] // 2}"
            break
    if "lora" in [model.get(f"{part}_trainable") for part in ("encoder", "decoder")]:
        if not model.get("quantize_base"):
            yield "model.quantize_base=true"
    elif cfg.optimizer["_component_"] == "torch.optim.AdamW":
        yield "optimizer=torchao.optim.AdamW8bit"


def _faster(cfg: DictConfig, found: Estimate, gpu: str, mix: Mix) -> Iterator[tuple[str, Estimate]]:
    """The smallest share of recomputed layers of the decoder that fits: a smaller one needs more memory."""

    def of(share: float) -> tuple[str, Estimate]:
        words = f"activation_checkpointing.decoder={share:g}"
        return words, estimate(changed(cfg, words), found.gpus, gpu, mix)

    less = [share for share in SHARES if share < float(cfg.activation_checkpointing.decoder)]
    at = bisect_left(less, True, key=lambda share: of(share)[1].fits)
    if at < len(less):
        yield of(less[at])


def changed(cfg: DictConfig, words: str) -> DictConfig:
    """A config with a few overrides `key=value`, without checking them."""
    node = OmegaConf.from_dotlist([word for word in words.split() if not word.startswith("optimizer=")])
    merged = OmegaConf.merge(cfg, node)
    assert isinstance(merged, DictConfig)
    for word in words.split():
        if word.startswith("optimizer="):
            merged.optimizer = {**cfg.optimizer, "_component_": word.partition("=")[2]}
    return merged


def with_defaults(mix: Mix, **given: Any) -> Mix:
    """A mix with what the command line gives; None: as it is."""
    return replace(mix, **{name: value for name, value in given.items() if value is not None})
