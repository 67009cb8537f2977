"""Videos in memory: frames, sizes, times and patches bit for bit beside transformers' video processors."""

import importlib

import numpy as np
import pytest
import tiny
import torch

from torchtune_qwenvl.models.glm4v import GLM4VVideoTransform
from torchtune_qwenvl.models.qwen2_5_vl import Qwen2_5_VLVideoTransform
from torchtune_qwenvl.models.qwen2_vl import Qwen2VLVideoTransform
from torchtune_qwenvl.models.qwen3_vl import Qwen3VLVideoTransform
from torchtune_qwenvl.transforms.errors import BadSample

FAMILIES = {
    "qwen2_vl": (Qwen2VLVideoTransform, "qwen2_vl.video_processing_qwen2_vl.Qwen2VLVideoProcessor"),
    "qwen2_5_vl": (Qwen2_5_VLVideoTransform, "qwen2_vl.video_processing_qwen2_vl.Qwen2VLVideoProcessor"),
    "qwen3_vl": (Qwen3VLVideoTransform, "qwen3_vl.video_processing_qwen3_vl.Qwen3VLVideoProcessor"),
    "glm4v": (GLM4VVideoTransform, "glm4v.video_processing_glm4v.Glm4vVideoProcessor"),
}


def reference(family: str, **settings):
    """transformers' video processor, reading two frames a second unless told otherwise."""
    module, _, name = FAMILIES[family][1].rpartition(".")
    processor = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    return processor(**({} if "num_frames" in settings else {"fps": 2.0}), do_sample_frames=True, **settings)


def clip(n_frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 [t, 3, h, w] of noisy pictures."""
    pictures = [np.asarray(tiny.photo(height, width, seed=seed + i)) for i in range(n_frames)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def assert_equals_reference(family: str, video: torch.Tensor, fps: float, **options) -> None:
    metadata = {"total_num_frames": len(video), "fps": fps, "duration": len(video) / fps}
    theirs = reference(family, **options)(
        [video], video_metadata=[metadata], return_metadata=True, return_tensors="pt"
    )
    sampling = options or {"fps": 2.0}
    transform = FAMILIES[family][0]()
    planned = transform.plan(video, source_fps=fps, **sampling)
    assert list(planned.indices) == list(theirs["video_metadata"][0].frames_indices)
    patches, grid = transform.patches(planned)
    assert torch.equal(patches, theirs["pixel_values_videos"])
    assert list(grid) == theirs["video_grid_thw"][0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_frames, fps", [(9, 3.0), (31, 30.0), (60, 29.97), (50, 25.0)])
def test_tensors_bit_for_bit(family, n_frames, fps):
    assert_equals_reference(family, clip(n_frames, 60, 90), fps)


def test_a_list_and_an_array_are_the_tensor(tmp_path):
    video = clip(4, 40, 60)
    pictures = [frame.permute(1, 2, 0).numpy() for frame in video]
    transform = Qwen2_5_VLVideoTransform(dtype="uint8")
    whole = transform({"video": video, "source_fps": 2.0})
    assert whole["pixel_values_videos"].dtype == torch.uint8
    assert whole["second_per_grid_ts"].tolist() == [1.0]
    for same in (pictures, np.stack(pictures), list(video)):
        assert torch.equal(
            transform({"video": same, "source_fps": 2.0})["pixel_values_videos"], whole["pixel_values_videos"]
        )


def test_bad_videos():
    transform = Qwen2_5_VLVideoTransform()
    for video, options, message in [
        ([], {}, "a video with no frames"),
        (clip(3, 20, 20), {"num_frames": 8, "source_fps": 2.0}, "it has 3 frames, 8 are wanted"),
        (clip(3, 20, 20), {}, "no frame rate is known"),
        (clip(3, 20, 20), {"fps": 1.0, "num_frames": 2}, "fps and num_frames exclude each other"),
        ([*clip(1, 20, 20), *clip(1, 20, 21)], {}, "frames of one size, got 20 x 20, 20 x 21"),
    ]:
        with pytest.raises(BadSample, match=f"video given as .*{message}"):
            transform({"video": video, **options})
