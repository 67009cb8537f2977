"""Videos in messages: from a folder's settings to the sample, the length policy, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from torchtune.data import Message

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.transforms.chat.positions import temporal_positions
from torchtune_qwenvl.transforms.errors import BadSample, SampleTooLong
from torchtune_qwenvl.transforms.size import SampleSize

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """All but the weights, of every family."""
    root = tmp_path_factory.mktemp("folders")
    for family in FAMILIES:
        (root / family).mkdir()
        tiny.write_processor_files(root / family, family=family)
        config = tiny.nested_config(tiny.tiny_hf_config(family=family))
        (root / family / "config.json").write_text(json.dumps(config))
    return root


def clip(frames=4, size=(56, 84), **options):
    pixels = torch.from_numpy(np.stack([np.array(tiny.photo(*size, seed=i)) for i in range(frames)]))
    return {"type": "video", "content": pixels.permute(0, 3, 1, 2), "source_fps": 2.0, **options}


def exchange(*parts, answer="an answer"):
    return [Message("user", [*parts, {"type": "text", "content": "What?"}]), Message("assistant", answer)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sample_of_images_and_videos(folders, family):
    """In the order of the text, patches of stills one frame wide under uint8, and as large as announced."""
    transform = load_transform(folders / family, dtype="uint8")
    image = {"type": "image", "content": tiny.photo(70, 90)}
    messages = [*exchange(clip(5), image), *exchange(clip(2, (84, 56)))]
    sample = transform({"messages": messages})
    vision, side = sample["encoder_input"]["vision"], transform.image_transform.patch_size
    assert vision["grid_thw"][:, 0].tolist() == [3, 1, 1]
    assert [len(one) for one in vision["images"]] == vision["grid_thw"].prod(1).tolist()
    assert [one.shape[1] // (3 * side**2) for one in vision["images"]] == [2, 1, 2]
    ids = torch.tensor(sample["tokens"])
    visual = (ids == transform.image_token_id) | (ids == transform.video_token_id)
    assert visual.sum() == vision["grid_thw"].prod(1).sum() // 4
    assert torch.equal(sample["visual"], visual.nonzero().squeeze(1))
    assert transform.size({"messages": messages}) == SampleSize.of(sample)


def test_settings_come_from_the_folder(folders):
    settings = {family: load_transform(folders / family).video_transform.settings for family in FAMILIES}
    limits = {family: (s.min_pixels, s.max_pixels) for family, s in settings.items()}
    assert limits["qwen2_vl"] == limits["qwen2_5_vl"] == (3136, 12845056)  # an image's
    assert limits["qwen3_vl"] == (4096, 25165824) and limits["glm4v"] == (12544, 47040000)
    assert (settings["qwen3_vl"].fps, settings["qwen3_vl"].max_frames) == (2, 768)
    changed = load_transform(folders / "qwen3_vl", fps=1, video_total_pixels=50176, video_max_pixels=None)
    assert changed.video_transform.settings.fps == 1
    assert changed.video_transform.settings.total_pixels == 50176
    assert changed.video_transform.settings.max_pixels == 25165824


def test_both_generations_of_folders_say_the_same(folders, tmp_path):
    for family in ("qwen3_vl", "glm4v"):
        new = tiny.save_tiny_folder(tmp_path / family, family=family, layout="5.x")
        assert not (new / "video_preprocessor_config.json").exists()
        ours, theirs = (load_transform(folder).video_transform for folder in (new, folders / family))
        assert ours.settings.max_pixels == theirs.settings.max_pixels
        assert ours.settings.fps == theirs.settings.fps


def test_a_folder_without_the_file_for_videos_takes_images_only(folders, tmp_path):
    folder = shutil.copytree(folders / "qwen3_vl", tmp_path / "folder")
    (folder / "video_preprocessor_config.json").unlink()
    transform = load_transform(folder)
    transform({"messages": exchange({"type": "image", "content": tiny.photo(64, 64)})})
    with pytest.raises(BadSample, match=r"message 0, part 0: .*no video_preprocessor_config\.json: copy"):
        transform({"messages": exchange(clip())})


def test_a_template_that_leaves_out_videos_takes_images_only(folders, tmp_path):
    folder = shutil.copytree(folders / "qwen2_vl", tmp_path / "folder")
    deaf = tiny.CHAT_TEMPLATE.replace("part['type'] == 'video'", "part['type'] == 'film'")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": deaf}))
    transform = load_transform(folder)
    transform({"messages": exchange({"type": "image", "content": tiny.photo(64, 64)})})
    with pytest.raises(BadSample, match=r"chat template writes otherwise: .*'videos and images' the render"):
        transform({"messages": exchange(clip())})
    load_transform(folder, chat_template="builtin")({"messages": exchange(clip())})


def test_positions_need_the_rate_that_config_json_gives(folders, tmp_path):
    folder = shutil.copytree(folders / "qwen2_5_vl", tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    rate = config["vision_config"].pop("tokens_per_second")
    assert rate == 2
    sample = load_transform(folders / "qwen2_5_vl")({"messages": exchange(clip(6, source_fps=0.5))})
    times = sample["input_pos"][torch.tensor(sample["tokens"]) == tiny.token_id("<|video_pad|>"), 0]
    assert (times - times.min()).unique().tolist() == [0, 8, 16]  # a patch every 4 seconds, 2 positions each
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadSample, match=r"does not say vision_config\.tokens_per_second"):
        load_transform(folder)({"messages": exchange(clip())})


def test_times_are_cut_to_whole_numbers_last():
    assert temporal_positions(5, 0.4, 2) == (0, 0, 1, 2, 3)
    assert temporal_positions(4, 0.75, 2) == (0, 1, 3, 4)
    assert temporal_positions(3, 0.75, None) == (0, 1, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_samples_lose_whole_exchanges_before_decoding(folders, tmp_path, family):
    for i in range(4):
        tiny.photo(56, 84, seed=i).save(tmp_path / f"{i}.jpg")
    frames = [str(tmp_path / f"{i}.jpg") for i in range(4)]
    messages = [*exchange(clip()), *exchange({"type": "video", "content": frames, "source_fps": 2})]
    whole = load_transform(folders / family)
    n, first = len(whole({"messages": messages})["tokens"]), whole({"messages": messages[:2]})
    # The header stays whole; decoding it raises.
    (tmp_path / "3.jpg").write_bytes((tmp_path / "3.jpg").read_bytes()[:-200])
    with pytest.raises(BadSample, match=r"3\.jpg"):
        whole({"messages": messages})
    short = load_transform(folders / family, max_seq_len=n - 1)
    sample = short({"messages": messages})
    assert sample["tokens"] == first["tokens"] and sample["dropped_turns"] == 2
    assert torch.equal(sample["input_pos"], first["input_pos"])
    assert len(sample["encoder_input"]["vision"]["images"]) == 1
    assert short.size({"messages": messages}) == SampleSize.of(first)
    with pytest.raises(SampleTooLong, match="its first exchange alone"):
        load_transform(folders / family, max_seq_len=20)({"messages": messages})


def test_an_answer_that_becomes_the_last_one_keeps_its_reasoning(folders):
    """The exchanges after it are dropped, and it is rendered as the end of the conversation."""
    reasoned = "<think>\nWhy?\n</think>\n\nSo."
    messages = [*exchange(answer=reasoned), *exchange(answer=reasoned + " And so on." * 9)]
    options = {"chat": "thinking", "chat_template": "builtin"}
    first = load_transform(folders / "qwen3_vl", **options)({"messages": messages[:2]})
    n = len(first["tokens"])
    sample = load_transform(folders / "qwen3_vl", max_seq_len=n, **options)({"messages": messages})
    assert sample["tokens"] == first["tokens"] and sample["mask"] == first["mask"]
    # With its reasoning it is longer than without: what fits without may not fit with it.
    with pytest.raises(SampleTooLong):
        load_transform(folders / "qwen3_vl", max_seq_len=n - 1, **options)({"messages": messages})


def test_a_video_without_a_frame_rate_is_refused_where_time_matters(folders):
    silent = clip()
    del silent["source_fps"]
    load_transform(folders / "qwen2_vl")({"messages": exchange(silent)})
    for family in ("qwen2_5_vl", "qwen3_vl", "glm4v"):
        with pytest.raises(BadSample, match=r"message 0, part 0.*the frame rate is unknown.*source_fps"):
            load_transform(folders / family)({"messages": exchange(silent)})


def test_a_prompt_may_end_with_an_empty_answer_only(folders):
    transform = load_transform(folders / "qwen2_vl")
    question = exchange(clip())[0]
    prompt, same = (
        transform({"messages": [question, *more]}, inference=True)
        for more in ([], [Message("assistant", "")])
    )
    assert prompt["tokens"] == same["tokens"]
    with pytest.raises(BadSample, match="ends with an answer"):
        transform({"messages": [question, Message("assistant", [clip()])]}, inference=True)
