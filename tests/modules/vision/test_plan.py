"""Plans of the vision encoder against windows cut one patch at a time."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_qwenvl.modules.vision.plan import plan_vision, read_grids

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
    plan = plan_vision(all_grids, MERGE, WINDOW, CPU)
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
    plan = plan_vision([(1, 10, 12)], MERGE, WINDOW, CPU)
    assert plan.windows.lengths == (64, 32, 16, 8)
    assert plan.order.tolist()[:6] == [0, 1, 2, 3, 6, 7]


def test_whole_multiples_have_no_empty_window():
    assert plan_vision([(1, 16, 24)], MERGE, WINDOW, CPU).windows.runs == ((6, 64),)


def test_without_windows_nothing_moves():
    plan = plan_vision([(2, 4, 6), (1, 2, 2)], MERGE, None, CPU)
    assert plan.order is None and plan.restore is None and plan.windows is plan.frames
    assert plan.positions.tolist() == [[row, column] for _, row, column in places([(2, 4, 6), (1, 2, 2)])]


def test_grids_come_as_tensors_or_lists():
    assert read_grids(torch.tensor([[1, 2, 4]])) == read_grids([[1, 2, 4]]) == ((1, 2, 4),)
