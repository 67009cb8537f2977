"""Settings that exclude each other, as a table: found in the config, before anything is built."""

from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig


@dataclass(frozen=True)
class Exclusion:
    """Two settings that do not go together.

    Attributes:
        settings: both, as a user writes them.
        found: whether a config has both.
        reason: why not, and what to do.
    """

    settings: str
    found: Callable[[DictConfig], bool]
    reason: str


EXCLUSIONS = (
    Exclusion(
        "optimizer_in_bwd with gradient_accumulation_steps > 1",
        lambda cfg: cfg.optimizer_in_bwd and cfg.gradient_accumulation_steps > 1,
        "each backward pass steps with its own gradients and drops them, nothing is left to accumulate. Set "
        "gradient_accumulation_steps=1 and a larger batch_size, or optimizer_in_bwd=false.",
    ),
    Exclusion(
        "optimizer_in_bwd with clip_grad_norm",
        lambda cfg: cfg.optimizer_in_bwd and cfg.clip_grad_norm is not None,
        "the norm of all gradients is known only after the last of them, when the others have been applied "
        "and dropped. Set clip_grad_norm=null or optimizer_in_bwd=false.",
    ),
    Exclusion(
        "optimizer_in_bwd with learning_rates per part",
        lambda cfg: cfg.optimizer_in_bwd and any(v is not None for v in cfg.learning_rates.values()),
        "the optimizers that step in the backward pass share one rate and one schedule. Set optimizer.lr "
        "alone, or optimizer_in_bwd=false.",
    ),
    Exclusion(
        "activation_offloading without activation_checkpointing",
        lambda cfg: cfg.activation_offloading and not any(cfg.activation_checkpointing.values()),
        "every intermediate result would travel to the host and back, which takes longer than computing it "
        "again. Set activation_checkpointing.decoder=true (and .encoder): then only layers' inputs travel.",
    ),
    Exclusion(
        "optimizer.bf16_stochastic_round with dtype=fp32",
        lambda cfg: cfg.dtype == "fp32" and bool(cfg.optimizer.get("bf16_stochastic_round")),
        "it rounds bf16 weights, with dtype=fp32 there are none. Set dtype=bf16, or leave it out.",
    ),
    Exclusion(
        "batch_tokens with pack_to or padding_free",
        lambda cfg: cfg.batch_tokens is not None and (cfg.pack_to is not None or cfg.padding_free),
        "it is the budget of padded batches; without padding a batch has at most batch_size * pack_to "
        "tokens. Set pack_to=N, batch_size=1 instead, or leave batch_tokens alone.",
    ),
)


def check_exclusions(cfg: DictConfig) -> None:
    """Raise a ValueError for every pair of EXCLUSIONS that the config has, all in one message."""
    found = [f"{pair.settings}: {pair.reason}" for pair in EXCLUSIONS if pair.found(cfg)]
    if found:
        raise ValueError("The config asks for what excludes each other.\n" + "\n".join(found))
