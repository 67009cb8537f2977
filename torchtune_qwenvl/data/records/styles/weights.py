"""How much an answer counts in the loss: one meaning for all the marks that trainers write into records.

    weight        OpenAI                 0, 1 or any number between and above
    loss_weight   LLaMA-Factory v1       the same
    loss_scale    ms-swift               the same
    loss          ms-swift               true, false or a number
    train         ShareGPT tools         the same
    masked        torchtune              true: not trained on

A number is the weight of the answer's tokens, and the loss of a step is the weighted mean over its tokens.
"""

import math
from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.data.records.text import shown
from torchtune_qwenvl.transforms.errors import BadSample

MARKS = ("weight", "loss_weight", "loss_scale", "loss", "train", "masked")
MOST = 1000.0
TRAIN_ON = ("all", "last")


def answer_weight(entry: Mapping[str, Any], where: str) -> float | None:
    """The weight that a turn or a record gives to its answer; None if it says nothing.

    Raises:
        BadSample: a value that is no weight, or two marks that differ.
    """
    found = {mark: _weight(mark, entry[mark], where) for mark in MARKS if entry.get(mark) is not None}
    if len(set(found.values())) > 1:
        raise BadSample(f"the weights {' and '.join(found)} differ", where=where, fix="keep one of them")
    return next(iter(found.values()), None)


def check_not_trained(weight: float | None, role: str, where: str) -> None:
    """Raise a BadSample if a turn that is no answer is to be trained on."""
    if weight:
        raise BadSample(
            f"a turn of role {role!r} with a weight of {weight:g}",
            where=where,
            fix="only answers are trained on",
        )


def _weight(mark: str, value: Any, where: str) -> float:
    if mark == "masked":
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return float(not value)
        raise BadSample(f"masked expects true or false, got {shown(value)}", where=where, fix="correct it")
    if isinstance(value, (int, float)) and 0 <= value <= MOST and math.isfinite(value):
        return float(value)
    raise BadSample(
        f"{mark} expects true, false or a number from 0 to {MOST:g}, got {shown(value)}",
        where=where,
        fix="it is the weight of the answer's tokens in the loss; correct it",
    )
