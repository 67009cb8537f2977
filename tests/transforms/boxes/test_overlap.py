"""Intersection over union, and pairs of boxes."""

import pytest

from torchtune_qwenvl.transforms.boxes import Place, iou, matched_ious


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (2, 2, 4, 4), 0.04),
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),
    ],
)
def test_iou(one, other, expected):
    assert iou(one, other) == pytest.approx(expected) == pytest.approx(iou(other, one))


def test_each_box_is_paired_once_the_best_pair_first():
    expected = [Place((0, 0, 10, 10)), Place((20, 0, 30, 10))]
    found = [Place((0, 0, 30, 10)), Place((0, 0, 10, 9))]
    assert matched_ious(expected, found) == pytest.approx([0.9, 1 / 3])
    assert matched_ious(expected, []) == [0.0, 0.0] and matched_ious([], found) == []


def test_labels_that_differ_are_no_pair_and_points_do_not_count():
    box = (0, 0, 10, 10)
    assert matched_ious([Place(box, "cat")], [Place(box, "dog"), Place((5, 5))]) == [0.0]
    assert matched_ious([Place(box, "cat")], [Place(box, " Cat")]) == matched_ious(
        [Place(box)], [Place(box, "x")]
    )
