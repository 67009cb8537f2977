"""Validation's questions are the samples' own, cut before the answer; what is shown is what was said."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fake_wandb import FakeWandb
from torch._dynamo.utils import counters
from torchtune.data import Message
from torchtune.training.metric_logging import WandBLogger

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.data import SkippedSample, collate
from torchtune_qwenvl.generation import generate
from torchtune_qwenvl.training.step.layers import compile_layers
from torchtune_qwenvl.training.watch.answer_display import as_text, show_answers
from torchtune_qwenvl.training.watch.history import History
from torchtune_qwenvl.training.watch.validation_answers import Answer, ValidationAnswers, question_of


def conversation(*turns: list[Any] | str) -> list[Message]:
    """Questions and answers in turn; an image stands as itself in a list."""
    messages = []
    for number, turn in enumerate(turns):
        parts = [turn] if isinstance(turn, str) else turn
        typed = [{"type": "text" if isinstance(p, str) else "image", "content": p} for p in parts]
        messages.append(Message("assistant" if number % 2 else "user", typed))
    return messages


@pytest.fixture(scope="module")
def asked(tiny_folder: Path) -> ValidationAnswers:
    transform = load_transform(tiny_folder, dtype="uint8")
    first, second, third = (tiny.photo(56 + 28 * i, 84, seed=i) for i in range(3))
    conversations = [
        conversation([first, "Which? "], "The first.", [second, "And\nthis?"], "No."),
        conversation(["Is ", first, " like ", third, "?"], "Yes."),
        conversation("Say user\ntwice", "user\nuser"),
    ]
    samples: list[Any] = [transform({"messages": messages}) for messages in conversations]
    dataset = [SkippedSample(0, "broken"), *samples]
    return ValidationAnswers(dataset, transform, load_model(tiny_folder), 3, 8, "skip")


def test_questions_end_before_the_first_answer(asked: ValidationAnswers) -> None:
    one, two, _ = asked.questions
    assert [q.text for q in asked.questions] == ["Which?", "Is  like ?", "twice"]
    assert [q.expected for q in asked.questions] == ["The first.", "Yes.", "user\nuser"]
    assert [[image.size for image in q.images] for q in asked.questions] == [
        [(84, 56)],
        [(84, 56), (84, 112)],
        [],
    ]
    assert len(one.prompt["encoder_input"]["vision"]["images"]) == 1
    assert len(two.prompt["tokens"]) == len(two.prompt["input_pos"])


def test_answers_are_those_of_prompts_from_messages(asked: ValidationAnswers, tiny_folder: Path) -> None:
    model, transform = load_model(tiny_folder).train(), asked.transform
    answers = asked(model)
    assert model.training and len(answers) == 3
    messages = conversation([tiny.photo(56, 84, seed=0), "Which? "])
    prompt = transform({"messages": messages}, inference=True)
    options = {"pad_id": transform.pad_id, "stop_tokens": transform.stop_tokens, "max_new_tokens": 8}
    (row,) = generate(model.eval(), [prompt], **options)
    assert answers[0].given == transform.decode(row)
    assert torch.equal(prompt["input_pos"], asked.questions[0].prompt["input_pos"])


def test_compiled_layers_answer_without_being_compiled_again(
    asked: ValidationAnswers, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "eager")
    torch._dynamo.reset()
    plain, compiled = load_model(tiny_folder), load_model(tiny_folder)
    compile_layers(compiled)
    batch = collate([asked.questions[0].prompt], padding_idx=asked.transform.pad_id)
    batch.pop("labels")
    assert torch.allclose(compiled(**batch), plain(**batch), atol=1e-5)
    before = counters["stats"]["unique_graphs"]
    assert [answer.given for answer in asked(compiled)] == [answer.given for answer in asked(plain)]
    assert counters["stats"]["unique_graphs"] == before > 0


def test_terminal_shows_them_aligned_and_cut(asked: ValidationAnswers) -> None:
    said = [
        Answer(q, given)
        for q, given in zip(asked.questions, ["The first. ", "No\nNo " * 40, ""], strict=True)
    ]
    assert [answer.right for answer in said] == [True, False, False]
    lines = as_text(said, width=60).splitlines()
    assert lines[:3] == ["  1  (1 image) Which?", "     expected  The first.", "     generated The first."]
    assert as_text([Answer(replace(asked.questions[1], clips=1), "")]).startswith("  1  (1 image, 1 clip) Is")
    assert lines[3].startswith("  2  (2 images) Is") and lines[8] == "     generated (nothing)"
    assert max(map(len, lines)) == 60 and lines[5].endswith("…")


def test_picture_and_wandb(asked: ValidationAnswers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict] = []
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(log=logged.append))
    said = [Answer(question, "A photo.") for question in asked.questions]
    history = History(WandBLogger.__new__(WandBLogger), tmp_path)
    history.logger._wandb = FakeWandb(run=None)
    assert "A photo." in show_answers(said, 20, tmp_path, history)
    assert (tmp_path / "answers/step_20.png").is_file()
    rows = logged[0]["answers"].rows
    assert rows[0] == ((56, 84, 3), "Which?", "The first.", "A photo.") and rows[2][0] is None


def test_no_validation_set_no_questions(tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    assert ValidationAnswers(None, None, model, 4, 8).questions == []


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_clip_is_one_whatever_its_length_and_its_times_are_no_words(family: str, tmp_path: Path) -> None:
    transform = load_transform(tiny.save_tiny_folder(tmp_path, family=family), dtype="uint8")
    visual = (transform.image_token_id, transform.video_token_id)
    for n_frames in (2, 9):
        clip = [tiny.photo(56, 84, seed=i) for i in range(n_frames)]
        content: list[Any] = [
            {"type": "image", "content": clip[0]},
            {"type": "video", "content": clip, "source_fps": 2.0},
            {"type": "text", "content": "5 cats?"},
        ]
        sample = transform({"messages": [Message("user", content), Message("assistant", "No.")]})
        question = question_of(sample, transform, visual)
        assert (question.text, len(question.images), question.clips) == ("5 cats?", 2, 1)
