"""Plans of the vision encoder against windows cut one patch at a time."""

import pickle
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_qwenvl.modules.vision.learned_positions import bilinear
from torchtune_qwenvl.modules.vision.plan import LearnedTable, VisionPlanner, read_grids

MERGE, WINDOW = 2, 4
CPU = torch.device("cpu")
grids = st.lists(
    st.tuples(
        st.integers(1, 2), st.integers(1, 11).map(lambda x: 2 * x), st.integers(1, 11).map(lambda x: 2 * x)
    ),
    min_size=1,
    max_size=3,
)


def places(all_grids):
    """(frame, row, column) of every patch in merge-block order."""
    frame = 0
    for t, h, w in all_grids:
        for _ in range(t):
            for block in range(h // 2 * (w // 2)):
                row, column = divmod(block, w // 2)
                yield from ((frame, 2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1))
            frame += 1


@settings(max_examples=50, deadline=None)
@given(grids)
def test_windows_frames_and_positions(all_grids):
    plan = VisionPlanner(MERGE, WINDOW).plan(all_grids, CPU)
    given_order = list(places(all_grids))
    blocks = torch.arange(len(given_order)).view(-1, MERGE * MERGE)[plan.order]
    placed = [given_order[i] for i in blocks.flatten().tolist()]
    assert plan.positions.tolist() == [[row, column] for _, row, column in placed]
    assert torch.equal(blocks[plan.restore].flatten(), torch.arange(len(given_order)))

    side = MERGE * WINDOW
    start = 0
    for length in plan.windows.lengths:
        window = {
            (frame, row // side, column // side) for frame, row, column in placed[start : start + length]
        }
        everyone = sum((frame, row // side, column // side) in window for frame, row, column in given_order)
        assert len(window) == 1 and everyone == length
        start += length
    assert start == len(given_order)
    assert plan.frames.lengths == tuple(h * w for t, h, w in all_grids for _ in range(t))
    per_frame = [sorted(lengths, reverse=True) for lengths in _split(plan)]
    assert per_frame == _split(plan)


def _split(plan):
    """Window lengths frame by frame."""
    frames, lengths = [], list(plan.windows.lengths)
    for total in plan.frames.lengths:
        frame: list[int] = []
        while sum(frame) < total:
            frame.append(lengths.pop(0))
        frames.append(frame)
    return frames


def test_the_example_of_the_docstring():
    plan = VisionPlanner(MERGE, WINDOW).plan([(1, 10, 12)], CPU)
    assert plan.windows.lengths == (64, 32, 16, 8)
    assert plan.order.tolist()[:6] == [0, 1, 2, 3, 6, 7]


def test_whole_multiples_have_no_empty_window():
    assert VisionPlanner(MERGE, WINDOW).plan([(1, 16, 24)], CPU).windows.runs == ((6, 64),)


def test_without_windows_nothing_moves():
    plan = VisionPlanner(MERGE, None).plan([(2, 4, 6), (1, 2, 2)], CPU)
    assert plan.order is None and plan.restore is None and plan.windows is plan.frames
    assert plan.positions.tolist() == [[row, column] for _, row, column in places([(2, 4, 6), (1, 2, 2)])]


def test_grids_come_as_tensors_or_lists():
    assert read_grids(torch.tensor([[1, 2, 4]])) == read_grids([[1, 2, 4]]) == ((1, 2, 4),)


@pytest.mark.parametrize(
    "planner",
    [
        VisionPlanner(MERGE, WINDOW),
        VisionPlanner(MERGE, extra=1),
        VisionPlanner(MERGE, table=LearnedTable(6, bilinear)),
    ],
)
def test_a_packed_plan_is_the_plan(planner):
    all_grids = [(2, 4, 6), (1, 2, 10)]
    packed = pickle.loads(pickle.dumps(planner)).pack(all_grids)
    assert packed.dtype == torch.int32
    ours, whole = planner.plan(all_grids, CPU, packed), planner.plan(all_grids, CPU)
    for name in ("positions", "order", "restore"):
        one, other = getattr(ours, name), getattr(whole, name)
        assert one is other is None or torch.equal(one, other)
    for name in ("frames", "windows"):
        segments = getattr(ours, name)
        assert segments.cu_seqlens.tolist() == [0, *accumulate(segments.lengths)]
    assert all(torch.equal(ours.stretched[n], bilinear(n, 6)) for n in ours.stretched)
    assert sorted(ours.stretched) == ([2, 4, 6, 10] if planner.table else [])


def test_a_plan_of_another_batch_is_refused():
    planner = VisionPlanner(MERGE, WINDOW)
    with pytest.raises(ValueError, match=r"expected 64 numbers for the grids .*, got 14"):
        planner.plan([(1, 4, 6)], CPU, planner.pack([(1, 2, 2)]))
