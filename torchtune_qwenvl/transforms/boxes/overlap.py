"""Intersection over union of boxes, and which found box belongs to which expected one."""

from __future__ import annotations

from collections.abc import Sequence

from torchtune_qwenvl.transforms.boxes.places import Place


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Area of the intersection over that of the union of two boxes (x1, y1, x2, y2); 0 if both are empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    union = _area(one) + _area(other) - both
    return both / union if union > 0 else 0.0


def matched_ious(expected: Sequence[Place], found: Sequence[Place]) -> list[float]:
    """For each expected box the IoU with the found box that is its own; 0 if there is none.

    The pair with the largest IoU is taken first, and each box once. Boxes with two different labels, whatever
    their case, are no pair. Points are left out.
    """
    boxes, others = ([place for place in places if not place.is_point] for places in (expected, found))
    pairs = sorted(
        (
            (iou(a.values, b.values), i, j)
            for i, a in enumerate(boxes)
            for j, b in enumerate(others)
            if _same(a, b)
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    best, taken = [0.0] * len(boxes), set[int]()
    free = set(range(len(boxes)))
    for value, i, j in pairs:
        if i in free and j not in taken:
            free.remove(i)
            taken.add(j)
            best[i] = value
    return best


def _same(one: Place, other: Place) -> bool:
    if one.label is None or other.label is None:
        return True
    return one.label.strip().casefold() == other.label.strip().casefold()


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
