"""The generate recipe: arguments, streamed text, images and messages."""

import runpy

import pytest
import tiny
from videos import encode

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.generation import generate
from torchtune_qwenvl.recipes.generate import main, messages_of, new_text, parse


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "a = b.png"
    tiny.photo(60, 90).save(path)
    return path


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
    sample = transform({"messages": messages_of(parse(arguments))}, inference=True)
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


def test_arguments_are_literal_and_images_add_up(tmp_path):
    settings = parse(
        ["checkpoint_dir=d", "image=a.png", "image=b,[1].png", "prompt=a: {b} = [c]", "top_p=0.5"]
    )
    assert settings.image == ["a.png", "b,[1].png"] and settings.top_p == 0.5
    (message,) = messages_of(settings)
    assert [part["type"] for part in message.content] == ["image", "image", "text"]
    assert message.content[-1]["content"] == "a: {b} = [c]"
    (tmp_path / "c.yaml").write_text("checkpoint_dir: d\nimage: [x.png]\nsystem: Be brief.\n")
    settings = parse(["--config", str(tmp_path / "c.yaml"), "prompt=Hi"])
    assert [message.role for message in messages_of(settings)] == ["system", "user"] and settings.image == [
        "x.png"
    ]


def test_videos_come_after_images_and_take_their_limits(tiny_folder, image, tmp_path, capsys):
    clip = encode(tmp_path / "clip.mp4", 8, 60, 90, rate=4, codec="mpeg4")
    arguments = [f"checkpoint_dir={tiny_folder}", f"video={clip}", f"image={image}", "max_new_tokens=8"]
    text = main([*arguments, "fps=1"])
    assert capsys.readouterr().out == f"{text}\n"
    (message,) = messages_of(parse(arguments))
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
            "unknown key 'imgae', expected one of checkpoint_dir, prompt, image",
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
