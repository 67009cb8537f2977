"""`tune-qwenvl chat` with piped lines: turns, media, commands, and the base model next to the tuned one."""

import io

import pytest
import tiny
import torch
from videos import encode

from torchtune_qwenvl import load_model, load_transform, save_model
from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter
from torchtune_qwenvl.cli.main import main
from torchtune_qwenvl.generation import Conversation, Sampling


@pytest.fixture(scope="module")
def tuned(tiny_folder, tmp_path_factory):
    """Folders of one LoRA: adapter/, merged model/; and full/, an adapter with a fully trained merger."""
    out = tmp_path_factory.mktemp("tuned")
    lora = {"decoder_trainable": "lora", "lora_attn_modules": ["q_proj"], "lora_rank": 2, "lora_alpha": 4}
    for name, fusion in (("adapter", "frozen"), ("full", "full")):
        model = load_model(tiny_folder, encoder_trainable="frozen", fusion_trainable=fusion, **lora)
        torch.manual_seed(1)
        for parameter_name, parameter in model.named_parameters():
            if "lora_b" in parameter_name:
                torch.nn.init.normal_(parameter)
        save_adapter(model, out / name, source=tiny_folder)
    save_model(model, out / "model", source=tiny_folder)
    return out


@pytest.fixture
def chat(monkeypatch, capsys):
    def run(*argv: str, lines: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        main(["chat", *map(str, argv), "--max-new-tokens", "8"])
        return capsys.readouterr().out.split("\n")[:-1]  # answers hold other separators

    return run


def answer(folder, model, *questions, images=()):
    """The last answer of a conversation."""
    talk = Conversation(load_transform(folder), max_new_tokens=8)
    for question in questions:
        talk.ask(question, images)
        images, text = (), "".join(talk.answer(model))
    return text


def test_turns_follow_each_other_and_media_belong_to_the_next_question(chat, tiny_folder, tmp_path):
    tiny.photo(60, 90).save(tmp_path / "a.png")
    encode(tmp_path / "clip.mp4", 8, 60, 90, rate=4, codec="mpeg4")
    lines = f"/image {tmp_path}/a.png\n/image {tmp_path}/a.png\nin the hand?\n\nand the other?\n"
    lines += f"/clear\n/video {tmp_path}/clip.mp4\nin the hand?\n/undo\nand?\n/quit\nnever read\n"
    model = load_model(tiny_folder).eval()
    images = [str(tmp_path / "a.png")] * 2
    shown = chat(tiny_folder, lines=lines)
    assert shown[0] == answer(tiny_folder, model, "in the hand?", images=images)
    assert shown[1] == answer(tiny_folder, model, "in the hand?", "and the other?", images=images)
    assert shown[3] == answer(tiny_folder, model, "and?") and len(shown) == 4


@pytest.mark.parametrize("name", ["adapter", "full"])
def test_an_adapter_is_switched_off_and_compared(chat, tuned, tiny_folder, name):
    lines = "/adapter off\nin the hand?\n/undo\n/adapter on\nin the hand?\n/undo\n"
    lines += "/compare on\nin the hand?\nand?\n"
    off, on, base, compared, *rest = chat(tuned / name, lines=lines)
    plain = load_model(tiny_folder).eval()
    assert off == answer(tiny_folder, plain, "in the hand?") and on != off
    assert (base, compared) == (f"base:  {off}", f"tuned: {on}")
    assert [line[:7] for line in rest] == ["base:  ", "tuned: "]


def test_a_merged_model_is_compared_with_the_one_that_is_named(chat, tuned, tiny_folder):
    base, on = chat(tuned / "model", "--base", tiny_folder, "--compare", lines="in the hand?\n")
    assert base == f"base:  {answer(tiny_folder, load_model(tiny_folder).eval(), 'in the hand?')}"
    assert on == f"tuned: {answer(tiny_folder, load_model(tuned / 'model').eval(), 'in the hand?')}"


def test_sampling_is_set_and_an_answer_tried_again(chat, tiny_folder):
    changes = "/set temperature=0 repetition_penalty=1.2 max_new_tokens=7"
    lines = f"in the hand?\n/retry\n{changes}\nin the hand?\n/set\n/help\n"
    first, again, said, _, alone, *commands = chat(tiny_folder, "temperature=9.0", "seed=4", lines=lines)
    assert first != again and said == alone
    choosing = "temperature=0.0, top_k=0, top_p=1.0, seed=5, min_p=0.0, repetition_penalty=1.2"
    assert said == f"{choosing}, max_new_tokens=7"
    assert any("/compare on|off" in line for line in commands)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("/imge a.png\n", "no command /imge. Did you mean 'image'"),
        ("/image gone.png\n", "gone.png: no such file"),
        ("/image\n", "no path given: no such file"),
        ("/adapter off\n", "there is no other model: start with --base DIR"),
        ("/compare maybe\n", "there is no other model"),
        ("/set top_p=2\n", "0 < top_p <= 1"),
        ("/set top_k=many\n", "top_k: expected int, got 'many'"),
        ("/set beams=2\n", "expected key=value with one of temperature"),
        ("/set max_new_tokens=0\n", "max_new_tokens: expected a whole number of at least 1, got '0'"),
        ("/retry\n", "nothing was answered yet"),
        ("/undo\n", "nothing was asked yet"),
    ],
)
def test_a_piped_error_ends_the_chat(chat, tiny_folder, lines, message):
    with pytest.raises(SystemExit, match="error: ") as stop:
        chat(tiny_folder, lines=lines)
    assert message in str(stop.value.code)


def test_a_typed_error_is_printed_and_the_chat_goes_on(tiny_folder, capsys):
    from torchtune_qwenvl.cli.chat.session import ChatSession, Models

    talk = Conversation(load_transform(tiny_folder), Sampling(), 8)
    ChatSession(talk, Models(str(tiny_folder))).run(["/image gone.png\n", "in the hand?\n"], typed=True)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "> error: gone.png: no such file" and len(shown) == 3
