"""The generate recipe: arguments, streamed text, images and messages."""

import json
import runpy
import shutil

import pytest
import tiny
import torch
from videos import encode

from torchtune_qwenvl import load_model, load_transform, save_model
from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter
from torchtune_qwenvl.generation import Conversation, generate
from torchtune_qwenvl.generation.conversation import new_text
from torchtune_qwenvl.recipes.generate import main, parse


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "a = b.png"
    tiny.photo(60, 90).save(path)
    return path


def messages_of(folder, settings):
    """The messages that the recipe sends."""
    talk = Conversation(load_transform(folder), system=settings.system)
    talk.ask(settings.prompt, settings.image, settings.video)
    return talk.messages


def test_prints_what_generate_gives(tiny_folder, image, capsys):
    arguments = [
        f"checkpoint_dir={tiny_folder}",
        f"image={image}",
        "prompt=What: is = this?",
        "max_new_tokens=12",
    ]
    text = main(arguments)
    assert capsys.readouterr().out == f"{text}\n"
    transform = load_transform(tiny_folder)
    sample = transform({"messages": messages_of(tiny_folder, parse(arguments))}, inference=True)
    (tokens,) = generate(
        load_model(tiny_folder).eval(),
        [sample],
        pad_id=transform.pad_id,
        stop_tokens=transform.stop_tokens,
        max_new_tokens=12,
    )
    assert len(tokens) > 3 and text == transform.decode(tokens).rstrip("\ufffd")
    assert main([*arguments, "temperature=5", "seed=3"]) != text


def test_a_switch_that_the_template_lacks_is_refused(tiny_folder):
    with pytest.raises(
        ValueError, match="enable_thinking=False: this model's chat template has no such switch"
    ):
        main([f"checkpoint_dir={tiny_folder}", "enable_thinking=false"])


def test_arguments_are_literal_and_images_add_up(tmp_path, tiny_folder, image):
    settings = parse(
        ["checkpoint_dir=d", "image=a.png", "image=b,[1].png", "prompt=a: {b} = [c]", "top_p=0.5"]
    )
    assert settings.image == ["a.png", "b,[1].png"] and settings.top_p == 0.5
    settings.image = [str(image)] * 2
    (message,) = messages_of(tiny_folder, settings)
    assert [part["type"] for part in message.content] == ["image", "image", "text"]
    assert message.content[-1]["content"] == "a: {b} = [c]"
    (tmp_path / "c.yaml").write_text("checkpoint_dir: d\nimage: [x.png]\nsystem: Be brief.\n")
    settings = parse(["--config", str(tmp_path / "c.yaml"), "prompt=Hi"])
    assert settings.image == ["x.png"]
    settings.image = []
    assert [message.role for message in messages_of(tiny_folder, settings)] == ["system", "user"]


def test_the_folder_says_how_tokens_are_chosen(tiny_folder, tmp_path, capsys):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    path = folder / "generation_config.json"
    stop = json.loads(path.read_text())["eos_token_id"]
    arguments = [f"checkpoint_dir={folder}", "prompt=in the hand", "max_new_tokens=12"]
    greedy = main(arguments)
    path.write_text(json.dumps({"eos_token_id": stop, "do_sample": True, "temperature": 9.0, "num_beams": 2}))
    sampled = main(arguments)
    assert sampled != greedy and main([*arguments, "seed=1"]) != sampled
    assert "num_beams = 2 is not followed" in capsys.readouterr().err
    assert main([*arguments, "temperature=0"]) == greedy
    assert main([*arguments, "temperature=0", "repetition_penalty=5"]) != greedy


def test_an_adapter_answers_as_its_merged_model(tiny_folder, tmp_path, capsys):
    setting = {"decoder_trainable": "lora", "encoder_trainable": "frozen", "fusion_trainable": "frozen"}
    model = load_model(tiny_folder, **setting, lora_attn_modules=["q_proj"], lora_rank=2, lora_alpha=4)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(model, tmp_path / "adapter", source=tiny_folder)
    save_model(model, tmp_path / "merged", source=tiny_folder)
    arguments = ["prompt=in the hand", "max_new_tokens=12"]
    tuned = main([f"checkpoint_dir={tmp_path / 'adapter'}", *arguments])
    assert tuned == main([f"checkpoint_dir={tmp_path / 'merged'}", *arguments])
    assert tuned != main([f"checkpoint_dir={tiny_folder}", *arguments])


def test_videos_come_after_images_and_take_their_limits(tiny_folder, image, tmp_path, capsys):
    clip = encode(tmp_path / "clip.mp4", 8, 60, 90, rate=4, codec="mpeg4")
    arguments = [f"checkpoint_dir={tiny_folder}", f"video={clip}", f"image={image}", "max_new_tokens=8"]
    text = main([*arguments, "fps=1"])
    assert capsys.readouterr().out == f"{text}\n"
    (message,) = messages_of(tiny_folder, parse(arguments))
    assert [part["type"] for part in message.content] == ["image", "video", "text"]
    transform = load_transform(tiny_folder, fps=1, video_total_pixels=1605632)
    sample = transform({"messages": [message]}, inference=True)
    assert sample["encoder_input"]["vision"]["grid_thw"][:, 0].tolist() == [1, 2]
    settings = {"pad_id": transform.pad_id, "stop_tokens": transform.stop_tokens, "max_new_tokens": 8}
    (tokens,) = generate(load_model(tiny_folder).eval(), [sample], **settings)
    assert text == transform.decode(tokens).rstrip("\ufffd")


def test_a_character_of_several_tokens_is_shown_whole():
    pieces = ["Â".encode(), "é".encode()[:1], "é".encode()[1:], b"!"]

    def decode(tokens):
        return b"".join(pieces[i] for i in tokens).decode(errors="replace")

    shown, texts = "", []
    for n in range(1, 5):
        texts.append(new_text(decode, list(range(n)), shown))
        shown += texts[-1]
    assert texts == ["Â", "", "é", "!"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["checkpoint_dir=d", "imgae=a.png"],
            "unknown key 'imgae', expected one of checkpoint_dir, base_dir, prompt, image",
        ),
        (["checkpoint_dir=d", "cat.jpg"], "key=value, got 'cat.jpg'"),
        (["prompt=Hi"], "checkpoint_dir is missing"),
        (["checkpoint_dir=d", "dtype=int8"], "bf16, fp16, fp32, got 'int8'"),
        (["checkpoint_dir=d", "top_k=many"], "many"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(arguments)


def test_as_a_command_it_ends_with_a_message_and_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["generate.py", f"checkpoint_dir={tmp_path}"])
    with pytest.raises(SystemExit, match=f"error: .*{tmp_path}"):
        runpy.run_module("torchtune_qwenvl.recipes.generate", run_name="__main__")
