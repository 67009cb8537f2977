"""What trains: the three parts of a model, the settings of each, and which settings go together.

The name of a parameter says which part it belongs to: `vision_encoder.…` is the encoder, except its mergers,
which are the fusion. Everything else is the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from torchtune_qwenvl.modules.adapters.lora import (
    ATTENTION_LINEARS,
    MLP_LINEARS,
    NO_TARGETS,
    Adapter,
    is_adapter,
)

Part = Literal["encoder", "fusion", "decoder"]
Mode = Literal["frozen", "lora", "full"]
PARTS: tuple[Part, ...] = ("encoder", "fusion", "decoder")
EMBEDDINGS = ("tok_embeddings", "output")  # modules of the decoder with one row per token
NOT_BY_GRADIENTS = ("correction_bias",)  # a router's bias, learnt from the load of its experts


def part_of(parameter_name: str) -> Part:
    """The part that a parameter belongs to, by its name."""
    path = parameter_name.split(".")
    if "vision_encoder" not in path:
        return "decoder"
    return "fusion" if any("merger" in name for name in path) else "encoder"


@dataclass(frozen=True)
class Training:
    """The mode of every part, and the adapters of those in mode "lora".

    Attributes:
        modes: of each part.
        adapters: of each part; None if it has none.
        exceptions: name of a module -> mode of everything inside modules of that name.
        experts_adapter: LoRA on the experts of a mixture, see `plan_experts`.
    """

    modes: Mapping[Part, Mode]
    adapters: Mapping[Part, Adapter | None]
    exceptions: Mapping[str, Mode] = field(default_factory=dict)
    experts_adapter: Adapter | None = None

    def mode_of(self, parameter_name: str) -> Mode:
        """How a parameter trains, by its name."""
        for name in parameter_name.split("."):
            if name in NOT_BY_GRADIENTS:
                return "frozen"
            if name in self.exceptions:
                return self.exceptions[name]
        return self.modes[part_of(parameter_name)]

    def apply(self, model: nn.Module, within: str = "") -> None:
        """Set `requires_grad` of every parameter. In a "lora" part only adapters train.

        Args:
            model: a whole model, or a part of one.
            within: how the names of the part's parameters begin in the whole model.
        """
        for name, parameter in model.named_parameters():
            mode = self.mode_of(within + name)
            parameter.requires_grad_(mode == "full" or (mode == "lora" and is_adapter(name)))


def plan_training(
    *,
    encoder_trainable: Mode | bool = "full",
    fusion_trainable: Mode | bool = "full",
    decoder_trainable: Mode | bool = "full",
    lora_attn_modules: Iterable[str] = (),
    apply_lora_to_mlp: bool = False,
    lora_rank: int | None = None,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    use_dora: bool = False,
    quantize_base: bool = False,
) -> Training:
    """The plan of these settings, after checking that they go together.

    Args:
        encoder_trainable: "frozen", "lora" or "full" for the vision encoder; True means full, False frozen.
        fusion_trainable: the same for the mergers.
        decoder_trainable: the same for the language model.
        lora_attn_modules: which of q_proj, k_proj, v_proj, output_proj get LoRA.
        apply_lora_to_mlp: whether the MLPs, including those of the mergers, get LoRA.
        lora_rank: rank of the LoRA matrices.
        lora_alpha: their output is multiplied by alpha / rank.
        lora_dropout: dropout of their input.
        use_dora: DoRA instead of LoRA.
        quantize_base: keep the language model's linears in NF4, in 4 bits per weight. Embeddings, head,
            experts, the vision encoder, and linears that NF4 cannot take are not quantised.

    Raises:
        ValueError: nothing trains, there are LoRA arguments without a "lora" part or the reverse, or
            quantised weights would have to train.
    """
    given = dict(zip(PARTS, (encoder_trainable, fusion_trainable, decoder_trainable), strict=True))
    modes = {part: _mode(part, value) for part, value in given.items()}
    if set(modes.values()) == {"frozen"}:
        raise ValueError(
            "nothing to train: encoder_trainable, fusion_trainable and decoder_trainable are frozen"
        )
    lora_parts = [part for part in PARTS if modes[part] == "lora"]
    attention = list(lora_attn_modules)
    _check_lora_arguments(
        lora_parts, attention, apply_lora_to_mlp, lora_rank, lora_alpha, lora_dropout, use_dora
    )
    adapters: dict[Part, Adapter | None] = dict.fromkeys(PARTS)
    if lora_parts:
        targets = frozenset(attention + list(MLP_LINEARS if apply_lora_to_mlp else ()))
        assert lora_rank is not None and lora_alpha is not None
        adapters |= dict.fromkeys(lora_parts, Adapter(targets, lora_rank, lora_alpha, lora_dropout, use_dora))
    if quantize_base:
        if modes["decoder"] == "full":
            raise ValueError(
                'quantize_base with decoder_trainable="full": weights of 4 bits cannot train. Set '
                'decoder_trainable to "lora" or "frozen", or quantize_base=False'
            )
        adapters["decoder"] = replace(adapters["decoder"] or NO_TARGETS, quantize_base=True)
    return Training(modes, adapters)


def plan_experts(training: Training, experts_trainable: Mode | bool | None) -> Training:
    """Add to a plan how the experts of a mixture train.

    Args:
        training: plan of the parts.
        experts_trainable: "frozen", "lora" (with the adapter of the decoder's MLPs), "full" or a bool. None:
            the same as the decoder; if that is "lora", the experts get LoRA if apply_lora_to_mlp is true.

    Raises:
        ValueError: "lora", but the decoder's MLPs have no LoRA; or DoRA on experts.
    """
    adapter = training.adapters["decoder"]
    on_mlp = adapter is not None and not adapter.targets.isdisjoint(MLP_LINEARS)
    given = training.modes["decoder"] if experts_trainable is None else experts_trainable
    mode = _mode("experts", given)
    if experts_trainable == "lora" and not on_mlp:
        raise ValueError(
            'experts_trainable="lora" needs decoder_trainable="lora" and apply_lora_to_mlp=True: the experts '
            "take the decoder's LoRA"
        )
    if mode != "lora" or not on_mlp:
        return replace(training, exceptions={**training.exceptions, "experts": mode})
    assert adapter is not None
    if adapter.use_dora:
        raise ValueError(
            "use_dora with LoRA on experts: experts take LoRA only, since PEFT has no DoRA for tensors of "
            "several experts. Set use_dora=False, or experts_trainable=False"
        )
    return replace(training, exceptions={**training.exceptions, "experts": mode}, experts_adapter=adapter)


def plan_embeddings(training: Training, embeddings_trainable: bool | None, resized: bool) -> Training:
    """Add to a plan how the token embeddings and the head train.

    Args:
        training: plan of the parts.
        embeddings_trainable: train both fully, or freeze both. None: as the decoder; next to LoRA they are
            frozen, or train fully if they were resized, since a new token has no row that was ever trained.
        resized: whether they were resized.
    """
    lora = training.modes["decoder"] == "lora"
    trains = lora and resized if embeddings_trainable is None else embeddings_trainable
    if embeddings_trainable is None and not trains:
        return training
    mode = _mode("embeddings", trains)
    return replace(training, exceptions={**training.exceptions, **dict.fromkeys(EMBEDDINGS, mode)})


def _mode(part: str, value: Mode | bool) -> Mode:
    if isinstance(value, bool):
        return "full" if value else "frozen"
    if value not in ("frozen", "lora", "full"):
        raise ValueError(f'{part}_trainable: expected "frozen", "lora", "full" or a bool, got {value!r}')
    return value


def _check_lora_arguments(
    parts: list[Part],
    attention: list[str],
    mlp: bool,
    rank: int | None,
    alpha: float | None,
    dropout: float,
    use_dora: bool,
) -> None:
    unknown = set(attention) - set(ATTENTION_LINEARS)
    if unknown:
        raise ValueError(f"lora_attn_modules: expected some of {ATTENTION_LINEARS}, got {sorted(unknown)}")
    if not parts:
        if attention or mlp or rank is not None or alpha is not None or dropout or use_dora:
            raise ValueError(
                'LoRA arguments are given, but no part is "lora": set encoder_trainable, fusion_trainable or '
                'decoder_trainable to "lora", or drop the lora_… and use_dora arguments'
            )
        return
    if rank is None or alpha is None or rank < 1:
        raise ValueError(
            f'{parts} set to "lora": lora_rank (at least 1) and lora_alpha are needed, got {rank}, {alpha}'
        )
    if "fusion" in parts and not mlp:
        raise ValueError('fusion_trainable="lora" needs apply_lora_to_mlp=True: the merger has no attention')
    if not attention and not mlp:
        raise ValueError(
            f'{parts} set to "lora", but nothing to put it on: lora_attn_modules or apply_lora_to_mlp'
        )
