"""Real clips beside stills, from a data file through workers into a batch; bad ones are counted."""

import json

import pytest
import tiny
import torch
import videos
from torchtune.data import Message

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import ResumableSampler, build_loader, collate, vision_chat_dataset
from torchtune_qwenvl.models.qwen2_5_vl._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.transforms.errors import BadSample


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four samples: a clip, a still, both, and a clip that is cut off."""
    root = tmp_path_factory.mktemp("data")
    videos.encode(root / "h264.mp4", 30)
    videos.encode(root / "vp9.webm", 20)
    tiny.photo(60, 80).save(root / "still.png")
    whole = (root / "vp9.webm").read_bytes()
    (root / "cut.webm").write_bytes(whole[: len(whole) // 2])
    media = [
        {"video": "h264.mp4"},
        {"image": "still.png"},
        {"video": "vp9.webm", "image": "still.png"},
        {"video": "cut.webm"},
    ]
    rows = [{**files, "question": "What?", "answer": "A cat."} for files in media]
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "data.jsonl"


def transform_of(folder, dtype):
    return load_transform(folder, dtype=dtype, video_max_pixels=7840, max_pixels=7840)


def test_workers_decode_and_count_what_is_cut_off(data, tiny_folder):
    dataset = vision_chat_dataset(transform_of(tiny_folder, "uint8"), source=str(data), on_bad_sample="skip")
    loader = build_loader(
        dataset, batch_size=4, sampler=ResumableSampler(4, shuffle=False), num_workers=1, padding_idx=0
    )
    (batch,) = loader
    vision = batch.inputs["encoder_input"]["vision"]
    assert batch.samples == 3 and vision["grid_thw"][:, 0].tolist() == [2, 1, 1, 2]
    assert vision["pixel_values"].shape == (vision["grid_thw"].prod(1).sum(), 3 * 2 * 14 * 14)
    (skipped,) = batch.skipped
    assert "sample 3" in skipped.reason and "cut.webm: its header says" in skipped.reason
    with pytest.raises(BadSample, match=r"sample 3 .*cut\.webm"):
        vision_chat_dataset(transform_of(tiny_folder, "uint8"), source=str(data))[3]


def test_bytes_are_the_floats_before_they_are_normalised(data, tiny_folder):
    """Stills take the clip's two frames in collate, which is what a float dtype ships."""
    batches = []
    for dtype in ("uint8", "fp32"):
        dataset = vision_chat_dataset(transform_of(tiny_folder, dtype), source=str(data))
        batches.append(collate([dataset[i] for i in range(3)])["encoder_input"]["vision"])
    raw, plain = (batch["pixel_values"] for batch in batches)
    mean, std = (torch.tensor(values)[:, None] * 255.0 for values in (IMAGE_MEAN, IMAGE_STD))
    assert raw.dtype == torch.uint8 and raw.shape == plain.shape
    assert torch.equal(((raw.view(len(raw), 3, -1) - mean) / std).flatten(1), plain)
    assert torch.equal(batches[0]["grid_thw"], batches[1]["grid_thw"])


def test_what_is_too_long_is_never_decoded(data, tiny_folder, monkeypatch):
    transform = load_transform(tiny_folder, dtype="uint8", max_seq_len=100, fps=30.0)
    clip = {"type": "video", "content": data.parent / "h264.mp4"}
    messages = [
        *(Message("user", "What?"), Message("assistant", "A cat.")),
        *(Message("user", [clip]), Message("assistant", "A cat.")),
    ]

    def decoded(*arguments):
        raise AssertionError("decoded")

    monkeypatch.setattr("torchtune_qwenvl.transforms.videos.open_video.decode_frames", decoded)
    assert transform({"messages": messages})["dropped_turns"] == 2
    assert transform.size({"messages": messages}).patches == 0
