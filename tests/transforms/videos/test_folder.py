"""What a folder's file for videos changes, and what a config may set instead."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import videos
from torchtune.data import Message
from video_reference import FAMILIES

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.transforms.errors import BadSample

SAVED = {"fps": 2, "num_frames": 16, "max_duration": 200, "min_frames": 6, "max_frames": 50}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    found = {}
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"):
        found[family] = root / family
        found[family].mkdir()
        tiny.write_processor_files(found[family], family=family)
        config = tiny.nested_config(tiny.tiny_hf_config(family=family))
        (found[family] / "config.json").write_text(json.dumps(config))
    return found


def with_file(folder: Path, target: Path, processor: str, **values) -> Path:
    shutil.copytree(folder, target)
    size = {"shortest_edge": 12544, "longest_edge": 400000}
    file = {"size": size, **SAVED, "video_processor_type": processor, **values}
    (target / "video_preprocessor_config.json").write_text(json.dumps(file))
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_by_what_its_processor_goes_by(folders, tmp_path, family):
    transform, _, processor = FAMILIES[family]
    folder = with_file(folders["glm4v" if family == "glm46v" else family], tmp_path / "f", processor)
    found = load_transform(folder).video_transform
    settings, defaults = found.settings, transform.defaults
    assert type(found) is transform
    assert (settings.min_pixels, settings.max_pixels) == (12544, 400000)
    for name, value in SAVED.items():
        kept = name in transform.sampled_by
        assert getattr(settings, name) == (value if kept else getattr(defaults, name)), name


def test_a_config_overrides(folders):
    wanted = {"fps": 1.5, "min_frames": 3, "max_frames": 9, "max_duration": 60.0, "decode_timeout": 7.0}
    limits = {"min_pixels": 784, "max_pixels": 7840, "frame_pixels": 3136, "total_pixels": 78400}
    for folder in folders.values():
        transform = load_transform(folder, **wanted, **{f"video_{name}": limits[name] for name in limits})
        settings = transform.video_transform.settings
        assert {name: getattr(settings, name) for name in (*wanted, *limits)} == wanted | limits
    with pytest.raises(ValueError, match="min_frames 4 is more than max_frames 2"):
        load_transform(folders["qwen3_vl"], max_frames=2)
    with pytest.raises(ValueError, match=r"video_processor: this family has Glm4v.*, got 'x'"):
        load_transform(folders["glm4v"], video_processor="x")


def test_another_processor_is_no_guess(folders, tmp_path):
    transform = load_transform(with_file(folders["qwen3_vl"], tmp_path / "f", "Glm4vVideoProcessor"))
    message = Message("user", [{"type": "video", "content": [tiny.photo(32, 32)] * 4, "source_fps": 2.0}])
    with pytest.raises(BadSample, match="names Glm4vVideoProcessor for it, expected Qwen3VLVideoProcessor"):
        transform({"messages": [message]}, inference=True)


def test_a_file_in_a_message(folders, tmp_path):
    """The sample's patches are those of the video transform alone."""
    path = videos.encode(tmp_path / "h264.mp4", 60)
    for folder in folders.values():
        transform = load_transform(folder, dtype="uint8")
        message = Message("user", [{"type": "video", "content": path, "max_frames": 8}])
        vision = transform({"messages": [message]}, inference=True)["encoder_input"]["vision"]
        alone = transform.video_transform({"video": path, "max_frames": 8})
        assert vision["images"][0].equal(alone["pixel_values_videos"])
        assert vision["grid_thw"].equal(alone["video_grid_thw"])
    with pytest.raises(BadSample, match=r"message 0, part 0, .*gone\.mp4: no such video file"):
        transform({"messages": [Message("user", [{"type": "video", "content": "gone.mp4"}])]}, inference=True)
