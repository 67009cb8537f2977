"""One converter for a whole video gives the same pixels as a new converter for each frame."""

import av
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_qwenvl.transforms.videos.frame_decoder import ToRgb

FORMATS = (
    *("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "gray", "gbrp"),
    *("yuv420p10le", "yuv422p10le", "p010le", "rgb24"),
)
# Rec. 709, unspecified, 601 and 2020: codes of H.273; limited, full and unspecified range
SPACES, RANGES = (1, 2, 6, 9), (0, 1, 2)

frames = st.tuples(
    st.sampled_from(FORMATS),
    *(st.integers(2, 300), st.integers(2, 200)),
    *(st.sampled_from(SPACES), st.sampled_from(RANGES), st.integers(0, 2**32 - 1)),
)


def noise(kind: str, width: int, height: int, space: int, levels: int, seed: int) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, kind)
    for plane in frame.planes:
        values = np.random.default_rng(seed).integers(0, 256, plane.buffer_size, dtype=np.uint8)
        if kind.endswith("p10le"):
            values[1::2] &= 3
        plane.update(values.tobytes())
    if kind not in ("gbrp", "rgb24"):
        frame.colorspace, frame.color_range = space, levels
    return frame


@settings(deadline=None)
@given(st.lists(frames, min_size=1, max_size=4), st.integers(0, 3))
def test_frames_of_any_kind_after_one_another(kinds, turns):
    to_rgb = ToRgb(turns)
    for kind in kinds:
        expected = np.rot90(noise(*kind).to_ndarray(format="rgb24"), turns)
        found = to_rgb(noise(*kind))
        assert found.stride()[0] == 1 and found.stride()[2] == 3
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected), kind


def test_alpha_is_white_after_frames_without():
    to_rgb, opaque = ToRgb(0), noise("yuv420p", 40, 30, 1, 1, 0)
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    values[:, :20, 3], values[:, 20:, 3] = 0, 255
    clear = av.VideoFrame.from_ndarray(values, format="rgba")
    for _ in range(2):
        found = to_rgb(clear).permute(1, 2, 0).numpy()
        assert (found[:, :20] == 255).all() and np.array_equal(found[:, 20:], values[:, 20:, :3])
        assert np.array_equal(to_rgb(opaque).permute(1, 2, 0).numpy(), opaque.to_ndarray(format="rgb24"))
