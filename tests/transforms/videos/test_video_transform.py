"""Frame numbers, sizes, times and patches of videos equal those of transformers' processors bit for bit.

The reference gets all frames, decoded from the start of the file, and the container's frame rate.
"""

import functools
import importlib
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import tiny
import torch
import videos
from video_reference import FAMILIES, SAMPLING, UNKNOWN, reference

from torchtune_qwenvl.models.glm4v import GLM46VVideoTransform
from torchtune_qwenvl.models.qwen2_5_vl import Qwen2_5_VLVideoTransform
from torchtune_qwenvl.models.qwen2_vl import Qwen2VLVideoTransform
from torchtune_qwenvl.models.qwen3_vl import Qwen3VLVideoTransform
from torchtune_qwenvl.transforms.errors import BadSample

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "cat")


def reference_times(family: str, metadata) -> list[float]:
    """Seconds in the text by transformers' processors, or the seconds between two patches."""
    if family == "qwen2_5_vl":
        return [2 / metadata.sampled_fps]
    if family == "qwen3_vl":
        from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

        return Qwen3VLProcessor._calculate_timestamps(None, list(metadata.frames_indices), metadata.fps, 2)
    return metadata.timestamps[::2] if family.startswith("glm") else []


def our_times(family: str, transform, planned) -> list[float]:
    if family == "qwen2_5_vl":
        return [transform.seconds_per_grid(planned)]
    return [] if family == "qwen2_vl" else list(transform.timestamps(planned))


def assert_equals_reference(family: str, source, frames: torch.Tensor, rate: Fraction, theirs=None, **ours):
    """Compare both on `source` with `frames` [t, 3, h, w]; `theirs`: settings under transformers' names."""
    metadata = {"total_num_frames": len(frames), "fps": float(rate), "duration": float(len(frames) / rate)}
    expected = reference(family, **(ours if theirs is None else theirs))(
        [frames], video_metadata=[metadata], return_metadata=True, return_tensors="pt"
    )
    about = expected["video_metadata"][0]
    transform = FAMILIES[family][0](**{name: ours[name] for name in ours if name not in SAMPLING})
    planned = transform.plan(source, **{name: ours[name] for name in ours if name in SAMPLING})
    assert list(planned.indices) == list(about.frames_indices)
    assert list(planned.times) == [int(index) / about.fps for index in about.frames_indices]
    assert our_times(family, transform, planned) == reference_times(family, about)
    patches, grid = transform.patches(planned)
    assert list(grid) == expected["video_grid_thw"][0].tolist()
    assert torch.equal(patches, expected["pixel_values_videos"])
    return transform, planned, patches


@functools.cache
def read(path) -> tuple[torch.Tensor, Fraction]:
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    return torch.from_numpy(np.stack(videos.decode_all(path))).permute(0, 3, 1, 2), rate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def clip(folder):
    """3.03 seconds of video at 30000/1001 frames per second."""
    return videos.encode(
        folder / "clip.mp4", 91, 90, 120, rate=Fraction(30000, 1001), codec="libx264", options={"bf": "3"}
    )


@pytest.mark.parametrize("kind", videos.KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_files_bit_for_bit(folder, family, kind):
    path = folder / kind
    if not path.is_file():
        videos.encode(path, 34, 70, 54)
    assert_equals_reference(family, path, *read(path))


def test_photographs_bit_for_bit(folder):
    for number, (family, name) in enumerate(zip(FAMILIES, PHOTOGRAPHS, strict=True)):
        picture = getattr(importlib.import_module("skimage.data"), name)()
        height, width = (side // 2 * 2 for side in picture.shape[:2])
        path = videos.encode(
            folder / f"{name}.mp4", 6 + number, height, width, rate=5, codec="libx264", picture=picture
        )
        assert_equals_reference(family, path, *read(path))


OPTIONS = [
    {"fps": 1.0},
    {"fps": 4.0},
    {"fps": 0.7},
    {"fps": 1000.0, "min_pixels": 3136},
    {"num_frames": 7},
    {"num_frames": 16},
    {"fps": 5.0, "max_frames": 9},
    {"fps": 0.5, "min_frames": 7},
    {"min_pixels": 3136, "max_pixels": 40000},
    {"min_pixels": 150000, "max_pixels": 200000},
]
CASES = [(name, options) for name in FAMILIES for options in OPTIONS if not UNKNOWN[name] & set(options)]


@pytest.mark.parametrize("family, options", CASES, ids=str)
def test_options_bit_for_bit(clip, family, options):
    assert_equals_reference(family, clip, *read(clip), **options)


@pytest.mark.parametrize("n_frames, rate", [(2, 30), (3, 30), (5, 1), (7, 2), (13, 24), (61, 30)])
@pytest.mark.parametrize("family", FAMILIES)
def test_short_and_odd_clips_bit_for_bit(folder, family, n_frames, rate):
    path = folder / f"short_{n_frames}.mp4"
    if not path.is_file():
        videos.encode(path, n_frames, 40, 56, rate=rate, codec="mpeg4")
    if family == "glm46v" and n_frames <= 3:
        with pytest.raises(BadSample, match=r"expected 2 frames or more, got 0"):  # the reference raises too
            GLM46VVideoTransform().plan(path)
        return
    assert_equals_reference(family, path, *read(path))


def test_budgets_of_a_clip(clip):
    for tokens in (20, 300, 100000):
        assert_equals_reference(
            "qwen2_5_vl",
            clip,
            *read(clip),
            theirs={"min_pixels": 3136, "cap_pixels_per_frame": True, "max_video_tokens": tokens},
            min_pixels=3136,
            total_pixels=int(tokens * 28 * 28 * 0.9),
        )
    for low in (4096, 200000):
        assert_equals_reference(
            "qwen3_vl",
            clip,
            *read(clip),
            theirs={"min_pixels": low, "cap_pixels_per_frame": True},
            min_pixels=low,
            frame_pixels=768 * 32 * 32,
        )
    for family, transform in ((name, FAMILIES[name][0](min_pixels=784)) for name in FAMILIES):
        frames, rows, columns = transform.merged_grid(transform.plan(clip, total_pixels=60 * 28 * 28))
        side = transform.settings.patch_size * transform.settings.merge_size
        assert frames * rows * columns * side * side <= 60 * 28 * 28, family


def test_uint8_ships_raw_pixels(clip):
    for transform, *_ in FAMILIES.values():
        plain, raw = transform(), transform(dtype="uint8")
        expected = plain.patches(plain.plan(clip))[0]
        patches = raw.patches(raw.plan(clip))[0]
        assert patches.dtype == torch.uint8 and patches.shape == expected.shape
        mean, std = (
            torch.tensor(values) * 255.0 for values in (raw.settings.image_mean, raw.settings.image_std)
        )
        scaled = (patches.view(len(patches), 3, -1) - mean[:, None]) / std[:, None]
        assert torch.equal(scaled.flatten(1), expected)


def test_a_call_says_what_the_text_needs(clip):
    keys = {"qwen2_5_vl": "second_per_grid_ts", "qwen3_vl": "timestamps", "glm4v": "timestamps"}
    for family, key in keys.items():
        sample = FAMILIES[family][0](dtype="uint8")({"video": clip, "id": 3})
        assert {*sample} == {"video", "id", "pixel_values_videos", "video_grid_thw", key}
        assert sample["video_grid_thw"].shape == (1, 3)
        assert len(sample["pixel_values_videos"]) == sample["video_grid_thw"].prod()
    assert {*Qwen2VLVideoTransform()({"video": clip})} == {"video", "pixel_values_videos", "video_grid_thw"}


def test_frames_in_memory_are_all_taken(tmp_path):
    pictures = [np.asarray(tiny.photo(40, 60, seed=i)) for i in range(5)]
    stacked = np.stack(pictures)
    files = []
    for number, picture in enumerate(pictures):
        files.append(tmp_path / f"{number}.png")
        tiny.Image.fromarray(picture).save(files[-1])
    for family, (transform, *_) in FAMILIES.items():
        made = transform(dtype="uint8")
        planned = made.plan(stacked, source_fps=4.0)
        assert planned.indices == (0, 1, 2, 3, 4) and planned.sampled_fps == 4.0
        assert planned.times == (0.0, 0.25, 0.5, 0.75, 1.0)
        assert made.grid(planned)[0] == 3
        patches, _ = made.patches(planned)
        for same in (
            pictures,
            files,
            list(torch.from_numpy(stacked).permute(0, 3, 1, 2)),
            [*map(str, files)],
        ):
            assert torch.equal(made.patches(made.plan(same, source_fps=4.0))[0], patches), family
        assert len(made.plan(stacked, source_fps=4.0, fps=2.0).indices) < 5


def test_part_of_a_video(clip):
    transform = Qwen3VLVideoTransform(dtype="uint8")
    planned = transform.plan(clip, video_start=1.0, video_end=2.0, fps=4.0)
    rate = 30000 / 1001
    assert planned.indices[0] == 30 and planned.indices[-1] == 59  # the first and last frame of that second
    assert planned.times == tuple(index / rate for index in planned.indices)
    inside = transform.patches(planned)[0]
    frames = read(clip)[0][list(planned.indices)]
    assert torch.equal(inside, transform.patches(transform.plan(frames, source_fps=4.0))[0])
    with pytest.raises(BadSample, match=r"clip\.mp4: no frame between video_start 5 .*, 3\.04 sec"):
        transform.plan(clip, video_start=5)


def test_sizes_wanted(clip):
    transform = Qwen2_5_VLVideoTransform()
    planned = transform.plan(clip, resized_height=300, resized_width=500)
    assert (planned.height, planned.width) == (308, 504)
    with pytest.raises(BadSample, match="resized_height and resized_width together"):
        transform.plan(clip, resized_height=300)


def test_bad_requests(clip):
    four = np.zeros((4, 20, 20, 3), np.uint8)
    for family, video, options, message in [
        ("qwen2_5_vl", [], {}, "a video with no frames"),
        ("qwen2_5_vl", four, {"num_frames": 8, "source_fps": 2.0}, "it has 4 frames, but 8 are wanted"),
        ("qwen3_vl", four, {"num_frames": 8, "source_fps": 2.0}, "it has 4 frames, but 8 are wanted"),
        ("glm4v", four, {"num_frames": 8, "source_fps": 2.0}, "it has 4 frames, but 8 are wanted"),
        ("qwen2_5_vl", four, {}, r"the frame rate is unknown.*set source_fps"),
        ("qwen3_vl", four, {}, r"the frame rate is unknown.*set source_fps"),
        ("glm4v", four, {}, r"the frame rate is unknown.*set source_fps"),
        ("qwen2_vl", four, {"fps": 1.0}, r"the frame rate is unknown.*set source_fps"),
        ("qwen3_vl", four[:1], {"source_fps": 2.0}, "expected 2 frames or more, got 1"),
        ("qwen2_5_vl", clip, {"fps": 1.0, "num_frames": 2}, "fps and num_frames exclude each other"),
        ("qwen2_5_vl", four[:1], {"source_fps": 2.0, "fps": 2}, "expected 2 frames or more, got 1"),
        ("qwen3_vl", four[:1], {"source_fps": 2.0, "fps": 2}, "expected 2 frames or more, got 1"),
        ("qwen2_5_vl", clip, {"num_frames": 1}, r"only 0 of its \d+ frames would be read.*raise num_frames"),
        ("qwen3_vl", clip, {"num_frames": 1}, r"only 1 of its \d+ frames would be read.*raise num_frames"),
        ("qwen2_5_vl", clip, {"fps": 0}, "expected fps to be a positive number, at most 10,000, got 0"),
        ("qwen2_5_vl", clip, {"fps": "2"}, "expected fps to be a positive number, at most 10,000, got '2'"),
        ("qwen2_5_vl", clip, {"fps": True}, "expected fps to be a positive number, at most 10,000, got True"),
        ("qwen3_vl", clip, {"fps": float("inf")}, "expected fps to be a positive number, .* got inf"),
        (
            "glm4v",
            clip,
            {"fps": 1e9},
            "expected fps to be a positive number, at most 10,000, got 1000000000",
        ),
        ("qwen2_vl", clip, {"source_fps": "2"}, "expected source_fps to be a positive number, .* got '2'"),
        ("qwen2_vl", clip, {"video_start": "0"}, "expected video_start to be a number of seconds, got '0'"),
        (
            "qwen2_vl",
            clip,
            {"video_end": float("nan")},
            "expected video_end to be a number .* got nan",
        ),
        ("qwen2_5_vl", clip, {"max_frames": 2.5}, "expected max_frames to be a positive integer, got 2.5"),
        ("qwen2_5_vl", clip, {"min_frames": 9, "max_frames": 5}, "min_frames 9 is more than max_frames 5"),
        ("qwen2_5_vl", clip, {"min_pixels": 10**9}, "min_pixels 1000000000 is more than max_pixels"),
        ("qwen2_5_vl", [four[0], four[0, :18]], {}, "expected frames of one size, got 18 x 20, 20 x 20"),
        ("qwen2_5_vl", four[0], {}, r"expected \[t, h, w, 3\], got \[20, 20, 3\]"),
        (
            "qwen2_5_vl",
            four,
            {"source_fps": 2.0, "min_frames": 2, "max_frames": 3},
            "4 frames are given, max_frames is 3",
        ),
        ("qwen2_5_vl", [four[0], "gone.png"], {}, "frame 1, gone.png: no such image file"),
    ]:
        with pytest.raises(BadSample, match=f"message 1, .*: {message}"):
            FAMILIES[family][0]().plan(video, where="message 1", **options)
    for settings, message in [
        ({"fps": 0}, "expected fps to be a positive number, at most 10,000, got 0"),
        ({"fps": -1.0}, "expected fps to be a positive number, at most 10,000, got -1.0"),
        ({"num_frames": 0}, "expected num_frames to be a positive integer, got 0"),
        ({"total_pixels": "10"}, "expected total_pixels to be a positive integer, got '10'"),
    ]:
        for transform, *_ in FAMILIES.values():
            with pytest.raises(ValueError, match=message):
                transform(**settings)
    with pytest.raises(TypeError, match="max_framse"):
        Qwen2_5_VLVideoTransform(max_framse=3)


def test_a_frame_after_the_last_is_left_out(tmp_path):
    """14 of 17 frames, evenly spaced in fp32, are 0, 1, … and 17, which makes the reference fail."""
    path = videos.encode(tmp_path / "h264.mp4", 17)
    transform = Qwen2VLVideoTransform(dtype="uint8")
    planned = transform.plan(path, num_frames=14)
    assert len(planned.indices) == 14 and planned.indices[-1] < 17
    metadata = {"total_num_frames": 17, "fps": 30.0}
    with pytest.raises(IndexError):
        reference("qwen2_vl", num_frames=14)([read(path)[0]], video_metadata=[metadata])
    assert torch.equal(
        transform.patches(planned)[0],
        transform({"video": read(path)[0][list(planned.indices)]})["pixel_values_videos"],
    )


def test_qwen2_needs_no_times():
    planned = Qwen2VLVideoTransform().plan(np.zeros((4, 20, 20, 3), np.uint8))
    assert planned.indices == (0, 1, 2, 3) and planned.times == () and planned.sampled_fps is None


def test_one_frame_at_a_time(clip):
    """Only one frame at a time is in memory, besides the patches."""
    transform = Qwen2_5_VLVideoTransform(dtype="uint8")
    planned = transform.plan(clip, fps=10.0)
    alive, most = [], 0
    import weakref

    def watched(indices):
        nonlocal most
        for frame in planned.opened.frames(indices):
            alive.append(weakref.ref(frame))
            most = max(most, sum(ref() is not None for ref in alive))
            yield frame

    opened = SimpleNamespace(frames=watched)
    transform.patches(SimpleNamespace(**{**vars(planned), "opened": opened}))
    assert len(alive) == 30 and most <= 2
