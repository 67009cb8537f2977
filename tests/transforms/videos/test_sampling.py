"""Frame numbers and sizes of any video, by each family's rule, equal transformers'."""

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from video_reference import FAMILIES, UNKNOWN, reference, reference_module

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.videos.sampling import Clip

lengths = st.one_of(st.integers(1, 60), st.integers(1, 4000), st.integers(1, 200_000))
rates = st.one_of(
    st.sampled_from(
        [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25), Fraction(30), Fraction(1, 2)]
    ),
    st.fractions(Fraction(1, 4), 240, max_denominator=1001),
)
speeds = st.one_of(st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.floats(0.05, 60))
OURS = {family: transform() for family, (transform, *_) in FAMILIES.items()}


def frames(family: str, options: dict, n_frames: int, rate: Fraction) -> list[int] | None:
    """Our frame numbers; None if the video is refused."""
    clip = Clip(n_frames, float(rate), float(n_frames / rate))
    try:
        chosen = OURS[family].sample(clip, OURS[family].settings.changed(options))
        OURS[family].resize_to(50, 50, len(chosen), OURS[family].settings)
    except BadSample:
        return None
    return list(chosen)


def frames_of_reference(family: str, options: dict, n_frames: int, rate: Fraction) -> list[int] | None:
    """transformers' frame numbers; None if it raises, or has fewer than two frames."""
    from transformers.video_utils import VideoMetadata

    metadata = VideoMetadata(total_num_frames=n_frames, fps=float(rate), duration=float(n_frames / rate))
    processor = reference(family)
    for name in ("min_frames", "max_frames"):
        setattr(processor, name, options.get(name, getattr(processor, name, None)))
    if "num_frames" in options:
        processor.fps = None
    wanted = {name: options[name] for name in ("fps", "num_frames") if name in options}
    try:
        chosen = [int(index) for index in processor.sample_frames(metadata=metadata, **wanted)]
    except (ValueError, ZeroDivisionError, RuntimeError):
        return None
    exist = [index for index in chosen if index < n_frames]  # Qwen2's rule can ask for one too many
    return exist if len(exist) > 1 else None


@st.composite
def requests(draw, family: str) -> dict:
    options: dict = draw(
        st.sampled_from([{}, {"fps": draw(speeds)}, {"num_frames": draw(st.integers(2, 900))}])
    )
    if "num_frames" not in options and draw(st.booleans()):
        low = draw(st.integers(1, 40))
        options |= {"min_frames": low, "max_frames": draw(st.integers(low, 900))}
    return known(family, options)


def known(family: str, options: dict) -> dict:
    """The options that the family's reference has."""
    return {name: value for name, value in options.items() if name not in UNKNOWN[family]}


@pytest.mark.parametrize("family", FAMILIES)
def test_frame_numbers_equal_transformers(family):
    @settings(max_examples=150, deadline=None)
    @given(requests(family), lengths, rates)
    @example(known(family, {"num_frames": 313}), 312, Fraction(30))
    def check(options, n_frames, rate):
        ours, theirs = (rule(family, options, n_frames, rate) for rule in (frames, frames_of_reference))
        asked = options.get("num_frames", 0)
        if family in ("qwen2_vl", "qwen2_5_vl"):
            asked = round(asked / 2) * 2  # 313 of 312 frames are 312
        if theirs is not None and asked > n_frames:
            assert ours is None  # the reference repeats frames; fewer than asked is an error here
        else:
            assert ours == theirs

    check()


sides = st.integers(2, 3000)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_equal_transformers(family):
    module, wanted = reference_module(family), OURS[family].settings
    factor = wanted.patch_size * wanted.merge_size

    @settings(max_examples=200, deadline=None)
    @given(sides, sides, st.integers(2, 800), st.integers(1, 10**6), st.integers(1, 10**8))
    def check(height, width, n_frames, low, more):
        limits = {"min_pixels": low, "max_pixels": low + more}
        counted = {"num_frames": n_frames, "temporal_factor": 2} if family[:5] != "qwen2" else {}
        try:
            theirs = module.smart_resize(height=height, width=width, factor=factor, **counted, **limits)
        except ValueError as error:
            assert "aspect ratio" in str(error)
            with pytest.raises(BadSample, match="aspect ratio"):
                OURS[family].resize_to(height, width, n_frames, wanted.changed(limits))
            return
        assert OURS[family].resize_to(height, width, n_frames, wanted.changed(limits)) == theirs

    check()


def test_counts_that_only_we_know():
    """GLM's own processors choose frames by time only."""
    for family in ("glm4v", "glm46v"):
        clip, ours = Clip(100, 10.0, 10.0), OURS[family]
        for options, n in [({"num_frames": 8}, 8), ({"num_frames": 7}, 8), ({"max_frames": 6}, 6)]:
            chosen = ours.sample(clip, ours.settings.changed(options))
            assert len(chosen) == n and chosen[0] == 0 and chosen[-1] == 99
        assert len(ours.sample(clip, ours.settings.changed({"fps": 1.0, "min_frames": 16}))) == 16
    chosen = OURS["glm46v"].sample(Clip(100, 10.0, 10.0), OURS["glm46v"].settings.changed({"fps": 1.0}))
    assert len(chosen) == 10
