"""A table of settings that exclude each other; a config is checked before anything is built."""

from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig

from torchtune_qwenvl.settings.recipes import DEFAULT


@dataclass(frozen=True)
class Exclusion:
    """Two settings that cannot be combined.

    Attributes:
        settings: their names, as a user writes them.
        found: whether a config has both.
        reason: why they cannot be combined, and what to do.
    """

    settings: str
    found: Callable[[DictConfig], bool]
    reason: str


EXCLUSIONS = (
    Exclusion(
        "optimizer_in_bwd with gradient_accumulation_steps > 1",
        lambda cfg: cfg.optimizer_in_bwd and cfg.gradient_accumulation_steps > 1,
        "each backward pass uses its own gradients and drops them, so nothing can be accumulated. Set "
        "gradient_accumulation_steps=1 and a larger batch_size, or optimizer_in_bwd=false.",
    ),
    Exclusion(
        "optimizer_in_bwd with clip_grad_norm",
        lambda cfg: cfg.optimizer_in_bwd and cfg.clip_grad_norm is not None,
        "the norm of all gradients is known only after the last one is computed; by then the others have "
        "been used and dropped. Set clip_grad_norm=null or optimizer_in_bwd=false.",
    ),
    Exclusion(
        "optimizer_in_bwd with learning_rates per part",
        lambda cfg: cfg.optimizer_in_bwd and any(v is not None for v in cfg.learning_rates.values()),
        "the optimizers that step in the backward pass share one learning rate and one schedule. Set only "
        "optimizer.lr, or optimizer_in_bwd=false.",
    ),
    Exclusion(
        "activation_offloading without activation_checkpointing",
        lambda cfg: cfg.activation_offloading and not any(cfg.activation_checkpointing.values()),
        "every intermediate result would be copied to the host and back, which takes longer than computing "
        "it again. Set activation_checkpointing.decoder=true (and .encoder): then only inputs of layers are.",
    ),
    Exclusion(
        "optimizer.bf16_stochastic_round with dtype=fp32",
        lambda cfg: cfg.dtype == "fp32" and bool(cfg.optimizer.get("bf16_stochastic_round")),
        "it rounds bf16 weights, and with dtype=fp32 there are none. Set dtype=bf16, or leave it out.",
    ),
    Exclusion(
        "batch_tokens with pack_to or padding_free",
        lambda cfg: cfg.batch_tokens is not None and (cfg.pack_to is not None or cfg.padding_free),
        "it limits batches with padding; without padding a batch has at most batch_size * pack_to "
        "tokens. Set pack_to=N, batch_size=1 instead, or leave batch_tokens alone.",
    ),
    Exclusion(
        "optimizer_in_bwd with on_nonfinite=skip",
        lambda cfg: cfg.optimizer_in_bwd and cfg.on_nonfinite == "skip",
        "the first parameters have stepped by the time that the last gradient shows infinite or NaN values, "
        "so the step cannot be skipped as a whole. Set on_nonfinite=raise or optimizer_in_bwd=false.",
    ),
)


def check_exclusions(cfg: DictConfig) -> None:
    """Raise one ValueError that names every pair of EXCLUSIONS in the config; `train_vit` has none."""
    if cfg.recipe != DEFAULT:
        return
    found = [f"{pair.settings}: {pair.reason}" for pair in EXCLUSIONS if pair.found(cfg)]
    if found:
        raise ValueError("The config combines settings that exclude each other.\n" + "\n".join(found))
