"""The estimate of a config on so many GPUs of a kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from torchtune_qwenvl.estimating.cards import Card, card_named
from torchtune_qwenvl.estimating.memory import Memory, Moments
from torchtune_qwenvl.estimating.model import build, stages
from torchtune_qwenvl.estimating.time import Time, time_of
from torchtune_qwenvl.estimating.workload import Mix, Workload, tokens_of, workload
from torchtune_qwenvl.training.step.checkpointing import USABLE


@dataclass(frozen=True)
class Estimate:
    """What a step of one GPU takes.

    Attributes:
        memory: bytes at the fullest moment.
        time: seconds.
        work: the micro-batch that it is for.
        card: the GPU.
        gpus: how many share the parameters.
        parameters: of the model; trained: those of them that train.
    """

    memory: Memory
    time: Time
    work: Workload
    card: Card
    gpus: int
    parameters: int
    trained: int

    @property
    def fits(self) -> bool:
        """Whether it leaves room for fragments and libraries."""
        return self.memory.total <= USABLE * self.card.total


def estimate(cfg: DictConfig, gpus: int = 1, gpu: str = "h100", mix: Mix | None = None) -> Estimate:
    """Memory and time of a step of `recipes/finetune.py`.

    Args:
        cfg: a config from `settings.config.resolve`.
        gpus: how many GPUs share the parameters (FSDP); 1: no sharding.
        gpu: a key of `estimating.cards.CARDS`.
        mix: what conversations are like; None: `Mix()`.

    Raises:
        ValueError: an unknown GPU, or a config that cannot be estimated, see `estimating.model.build`.
    """
    if gpus < 1:
        raise ValueError(f"--gpus: expected at least 1, got {gpus}")
    card, model = card_named(gpu), build(cfg)
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    work = workload(tokens_of(values), model.vision_encoder.merge, mix or Mix())
    layers = list(stages(model, work, card, gpus))
    moments = Moments(model, layers, work, values, gpus)
    return Estimate(
        memory=moments.peak(),
        time=time_of(model, layers, moments.outside, work, values, card, gpus),
        work=work,
        card=card,
        gpus=gpus,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
