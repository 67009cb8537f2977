"""The three parts of a model in the recipe: what trains, at which learning rate, and whether it learns.

encoder: the vision encoder without its merger · fusion: the merger(s) · decoder: the language model.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from torchtune_qwenvl.distributed import local, whole
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4
from torchtune_qwenvl.modules.trainable import PARTS, part_of

VISUAL = ("encoder", "fusion")


def trainable_by_part(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """`{part: {name: parameter}}` of what trains, without frozen parts.

    Raises:
        ValueError: nothing trains.
    """
    parts: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(part_of(name), {})[name] = parameter
    if not parts:
        raise ValueError("Nothing to train: set encoder_trainable, fusion_trainable or decoder_trainable.")
    return {part: parts[part] for part in PARTS if part in parts}


def trainable_table(model: nn.Module, learning_rates: Mapping[str, float]) -> str:
    """One line per part: number of trained and of frozen parameters, dtypes, learning rate.

    If there are quantised weights, another line lists those that are not.
    """
    rows = [("part", "trains", "frozen", "dtype", "lr")]
    named = [(part_of(name), parameter) for name, parameter in model.named_parameters()]
    for part in PARTS:
        ours = [parameter for name, parameter in named if name == part]
        trains = [p for p in ours if p.requires_grad]
        dtypes = sorted({_dtype_name(p) for p in trains or ours})
        count, frozen = _numel(trains), _numel(p for p in ours if not p.requires_grad)
        rate = f"{learning_rates[part]:g}" if trains else "-"
        rows.append((part, f"{count:,}", f"{frozen:,}", "+".join(dtypes), rate))
    everything = [parameter for _, parameter in named]
    trains = [p for p in everything if p.requires_grad]
    rows.append(("all", f"{_numel(trains):,}", f"{_numel(everything) - _numel(trains):,}", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, *_quantized_lines(model)])


def _quantized_lines(model: nn.Module) -> list[str]:
    """How much is in NF4, and which frozen matrices are not; empty if nothing is quantised."""
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad and p.dim() > 1]
    in_nf4 = [p for _, p in frozen if is_nf4(local(p))]
    if not in_nf4:
        return []
    others = Counter(
        f"{re.sub(r'[.][0-9]+[.]', '.*.', name)} ({_dtype_name(p)})"
        for name, p in frozen
        if not is_nf4(local(p))
    )
    listed = ", ".join(name if n == 1 else f"{n} x {name}" for name, n in others.items())
    return [
        f"quantize_base: {len(in_nf4)} weights, {_numel(in_nf4):,} values, in NF4. Not quantised: {listed}"
    ]


class GradientCheck:
    """Checks at the first step that every trainable part learns; visual parts at the first step with images.

    Otherwise a part without gradients (a detached graph, an adapter that is never called) would go unnoticed.

    Args:
        parts: what trains, by part and name.
        at_once: read what is measured at once. Otherwise it stays on the device until `read` is called, so
            that no step waits for a GPU; None: at once for parameters on the CPU.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, nn.Parameter]], at_once: bool | None = None) -> None:
        self._unchecked = dict(parts)
        on_cpu = all(p.device.type == "cpu" for part in parts.values() for p in part.values())
        self._at_once = on_cpu if at_once is None else at_once
        self._measured: dict[str, Tensor] = {}  # part -> [2], whether it was measured, and the norm

    def __call__(self, gradients: Mapping[nn.Parameter, Tensor], labelled: Tensor, images: Tensor) -> None:
        """Call it after backward. Does nothing once every part is checked.

        Args:
            gradients: parameter -> its gradient, or the gradient's norm, as `gradients_of` gives them.
            labelled: number of labelled tokens on all ranks; a step without any is not checked.
            images: number of images and clips on all ranks.

        Raises:
            ValueError: a trainable parameter without a gradient, or a part whose gradients are all zero.
        """
        for part, parameters in self._unchecked.items():
            counts = labelled * images if part in VISUAL else labelled
            if not self._at_once or counts.item():
                self._measure(part, parameters, gradients, counts > 0)
        if self._at_once:
            self.read()

    def read(self) -> None:
        """Read what was measured; waits for the device if there is something new.

        Raises:
            ValueError: see `__call__`.
        """
        for part, measured in list(self._measured.items()):
            counted, norm = measured.tolist()
            if not counted:
                continue
            del self._measured[part], self._unchecked[part]
            if norm == 0:
                raise ValueError(
                    f"All gradients of the {part} are zero at the first step: the loss does not depend on "
                    "it. Freeze it, or correct the model (a detached graph, a LoRA whose factors are both "
                    "zero)."
                )

    def _measure(
        self,
        part: str,
        parameters: Mapping[str, nn.Parameter],
        gradients: Mapping[nn.Parameter, Tensor],
        counts: Tensor,
    ) -> None:
        missing = [name for name, parameter in parameters.items() if parameter not in gradients]
        if missing and counts.item():
            raise ValueError(
                f"{len(missing)} of {len(parameters)} trainable tensors of the {part} got no gradient at the "
                f"first step, '{missing[0]}' first: nothing they compute reaches the loss. Freeze this "
                "part, or correct the model."
            )
        if missing:
            return
        norm = gradient_norm(gradients[parameter] for parameter in parameters.values()).float()
        now = torch.stack([counts.to(norm.device).float(), norm])
        before = self._measured.get(part)
        self._measured[part] = now if before is None else torch.where(before[:1] > 0, before, now)


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients (or of norms of gradients) on all ranks, a scalar; all ranks must call."""
    return whole(torch.nn.utils.get_total_norm(list(gradients)))


def _dtype_name(parameter: nn.Parameter) -> str:
    return "nf4" if is_nf4(local(parameter)) else str(parameter.dtype).removeprefix("torch.")


def _numel(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
