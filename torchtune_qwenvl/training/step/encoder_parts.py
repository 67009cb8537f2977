"""What of a vision encoder trains for a classification, and at which rate: by layer, from input to output.

    stem ─> layer 0 ─> ... ─> layer n-1 (and the merger) ─> head
    lr·d^(n+1)  lr·d^n         lr·d                           lr        d = layer_decay

Layers are found by the encoder's `group_matcher`, as timm does it.
"""

import re
from typing import Any

from torch import nn

from torchtune_qwenvl.modules.adapters.attach import attach_lora
from torchtune_qwenvl.modules.adapters.lora import MLP_LINEARS, Adapter, is_adapter

MODES = ("everything", "last_n", "lora", "head")
STEM, HEAD = "stem", "head"
# Of a vision-language model alone; nothing of theirs reaches the classes.
UNUSED = "deepstack_mergers"

Parts = dict[str, dict[str, nn.Parameter]]


def choose_trainable(encoder: Any, mode: str, *, last_n: int, adapter: Adapter | None) -> None:
    """Set what trains, and add LoRA; the head always trains.

    Args:
        encoder: a vision encoder with a head.
        mode: everything, last_n, lora or head.
        last_n: of mode last_n, layers from the last.
        adapter: of mode lora.

    Raises:
        ValueError: another mode, or a number of layers that the encoder does not have.
    """
    if mode not in MODES:
        raise ValueError(f"train: expected one of {', '.join(MODES)}, got '{mode}'")
    if mode == "last_n" and not 1 <= last_n <= encoder.depth:
        raise ValueError(f"last_n: the encoder has {encoder.depth} layers, got {last_n}")
    if mode == "lora":
        assert adapter is not None
        attach_lora(encoder, adapter)
    first = {"everything": -1, "last_n": encoder.depth - last_n}.get(mode, encoder.depth + 1)
    for name, parameter in encoder.named_parameters():
        trains = layer_of(encoder, name) >= first or is_adapter(name) or _in_head(name)
        parameter.requires_grad_(trains and UNUSED not in name)


def adapter_of(settings: Any) -> Adapter:
    """The adapter that the config's `lora:` describes."""
    targets = {*settings["attn_modules"], *(MLP_LINEARS if settings["mlp"] else ())}
    return Adapter(frozenset(targets), settings["rank"], settings["alpha"], settings["dropout"])


def layer_of(encoder: Any, name: str) -> int:
    """Depth of a parameter: -1 for the stem, 0 .. n-1 for the layers and the merger, n for what is left."""
    matcher = encoder.group_matcher()
    if re.match(matcher["stem"], name):
        return -1
    for pattern, with_the_last in matcher["blocks"]:
        if found := re.match(pattern, name):
            return encoder.depth - 1 if with_the_last else int(found.group(1))
    return encoder.depth


def parts_of(encoder: Any, layer_decay: float) -> Parts:
    """`{part: {name: parameter}}` of what trains: "encoder" and "head", or with layer_decay each layer."""
    parts: Parts = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(_part(encoder, name, layer_decay != 1), {})[name] = parameter
    return parts


def rates_of(
    encoder: Any, parts: Parts, lr: float | None, head_lr: float | None, layer_decay: float
) -> dict[str, float]:
    """`{part: learning rate}`.

    Raises:
        ValueError: no learning rate, or a layer_decay that is not in (0, 1].
    """
    if lr is None:
        raise ValueError("No learning rate: set optimizer.lr.")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay: expected a number above 0, at most 1, got {layer_decay}")
    depths = {part: layer_of(encoder, next(iter(names))) for part, names in parts.items()}
    rates = {part: lr * layer_decay ** (encoder.depth - depth) for part, depth in depths.items()}
    if layer_decay == 1:
        rates = dict.fromkeys(parts, lr)
    if HEAD in rates:
        rates[HEAD] = lr if head_lr is None else head_lr
    return rates


def undecayed(encoder: Any) -> set[str]:
    """Names of the matrices that weight decay leaves alone."""
    return set(encoder.no_weight_decay())


def _part(encoder: Any, name: str, by_layer: bool) -> str:
    if _in_head(name):
        return HEAD
    depth = layer_of(encoder, name)
    if not by_layer:
        return "encoder"
    return STEM if depth < 0 else f"layer_{depth}"


def _in_head(name: str) -> bool:
    return name.startswith("head.")
