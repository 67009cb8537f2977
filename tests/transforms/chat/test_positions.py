"""M-RoPE positions: worked examples, and properties over random layouts."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_qwenvl.transforms.chat.positions import VisualBlock, mrope_positions


def test_the_worked_example():
    positions = mrope_positions(9, [VisualBlock(2, height=2, width=3)])
    assert positions.T.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]


def test_text_behind_late_frames_starts_behind_the_time_axis():
    # A clip of two temporal patches at times 0 and 8: max over all three axes, not over height and width.
    positions = mrope_positions(10, [VisualBlock(1, height=2, width=2, times=(0, 8))])
    assert positions[1:9, 0].tolist() == [1] * 4 + [9] * 4
    assert positions[9].tolist() == [10, 10, 10]


def test_no_blocks_is_plain_counting():
    assert torch.equal(mrope_positions(5, []), torch.arange(5)[:, None].expand(5, 3))


layouts = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(1, 6),
        st.integers(1, 6),
        st.lists(st.integers(0, 9), min_size=1, max_size=3).map(lambda times: tuple(sorted({0, *times}))),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(layouts, st.integers(0, 5))
def test_every_span_starts_behind_everything_before_it(layout, tail):
    blocks, n_tokens = [], 0
    for n_text, height, width, times in layout:
        blocks.append(VisualBlock(n_tokens + n_text, height, width, times))
        n_tokens += n_text + blocks[-1].n_tokens
    n_tokens += tail
    positions = mrope_positions(n_tokens, blocks)
    assert positions.shape == (n_tokens, 3) and positions.dtype == torch.int64
    in_block = torch.zeros(n_tokens, dtype=torch.bool)
    for block in blocks:
        span = positions[block.start : block.start + block.n_tokens]
        in_block[block.start : block.start + block.n_tokens] = True
        start = int(positions[: block.start].max()) + 1 if block.start else 0
        assert span.min() == span[0].max() == start
        # Every cell of the grid once, in the order times, rows, columns.
        cells = [tuple(cell) for cell in (span - start).tolist()]
        assert cells == sorted(set(cells)) and len(cells) == block.n_tokens
    for i in torch.nonzero(~in_block).flatten().tolist():
        expected = int(positions[:i].max()) + 1 if i else 0
        assert positions[i].tolist() == [expected] * 3
