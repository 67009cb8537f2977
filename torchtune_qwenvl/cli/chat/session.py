"""What happens in a `chat`: questions and commands in, answers of one or two models out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, get_type_hints

import torch
from torchtune.modules.peft import disable_adapter

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.checkpoints.loading import load_model
from torchtune_qwenvl.checkpoints.start import Start, find_start, load_start
from torchtune_qwenvl.generation import Conversation, Sampling
from torchtune_qwenvl.modules.adapters.lora import is_adapter
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


class Models:
    """The model that is talked to, and the one it is compared with.

    Args:
        folder: a checkpoint or an adapter.
        base: the other model's checkpoint; None: the adapter's base model, if it is one.
        dtype: of the weights; None: the files'.
        device: where both go.
    """

    def __init__(
        self, folder: str, base: str | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> None:
        self.start, self._base = find_both(folder, base)
        self._options = (dtype, device)
        self.tuned = load_start(self.start, dtype, device).eval()
        self._loaded: VisionLanguageModel | None = None

    def base(self) -> tuple[VisionLanguageModel, AbstractContextManager[None]]:
        """The other model, and the context in which it answers. An adapter of LoRA alone is switched off.

        Raises:
            ValueError: there is no other model.
        """
        if self._base is None and self.start.adapter is None:
            raise ValueError("there is no other model: start with --base DIR")
        if self._base is None and self._switches_off():
            return self.tuned, disable_adapter(self.tuned)
        if self._loaded is None:
            self._loaded = load_model(self._base or self.start.checkpoint, *self._options).eval()
        return self._loaded, nullcontext()

    def _switches_off(self) -> bool:
        """Whether all that was trained is LoRA that can be switched off."""
        trained = all(is_adapter(name) for name, p in self.tuned.named_parameters() if p.requires_grad)
        return trained and all(hasattr(m, "disabled") for m in self.tuned.modules() if hasattr(m, "lora_a"))


def find_both(folder: str, base: str | None) -> tuple[Start, str | None]:
    """(where the model begins, the checkpoint to compare with or None)."""
    try:
        return find_start(folder), base
    except ValueError:
        if base is None:
            raise
        return find_start(folder, base), None  # --base says where the adapter's base model is


def changed(sampling: Sampling, settings: Iterable[str]) -> Sampling:
    """Sampling with values given as key=value.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or out of range.
    """
    kinds, given = get_type_hints(Sampling), {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in kinds:
            raise ValueError(f"{setting!r}: expected key=value with one of {', '.join(kinds)}")
        try:
            given[key] = kinds[key](value)
        except ValueError as error:
            raise ValueError(f"{key}: expected {kinds[key].__name__}, got {value!r}") from error
    return sampling.with_given(**given)


LENGTH = "max_new_tokens"


class ChatCommand(NamedTuple):
    """A command: its arguments in words, what it does, and the method that does it."""

    arguments: str
    help: str
    run: Callable[[ChatSession, str], None]


class ChatSession:
    """Reads lines: commands begin with /, everything else is a question.

    Args:
        talk: the conversation, without questions.
        models: who answers.
        compare: whether both models answer each question.
    """

    def __init__(self, talk: Conversation, models: Models, compare: bool = False) -> None:
        self.talk, self.models, self.compare = talk, models, compare
        self.adapter = True
        self.images: list[str] = []
        self.videos: list[str] = []
        self.done = False

    def run(self, lines: Iterable[str], typed: bool = True) -> None:
        """Go through the lines until one is /quit.

        Args:
            lines: what is typed, or piped in.
            typed: whether a person types; then errors are printed, else the first one ends the chat.

        Raises:
            ValueError: an error of a piped line.
        """
        self._prompt(typed)
        for line in lines:
            try:
                self.take(line.strip())
            except ValueError as error:
                if not typed:
                    raise
                print(f"error: {error}")
            if self.done:
                return
            self._prompt(typed)

    def take(self, line: str) -> None:
        """One line: a command or a question; an empty one is nothing."""
        if line.startswith("/"):
            name, _, argument = line[1:].partition(" ")
            if name not in COMMANDS:
                raise ValueError(f"no command /{name}.{nearest(name, COMMANDS)} /help lists them")
            COMMANDS[name].run(self, argument.strip())
        elif line:
            self.talk.ask(line, self.images, self.videos)
            self.images, self.videos = [], []
            self._answer()

    def add_image(self, path: str) -> None:
        self.images.append(_file(path))

    def add_video(self, path: str) -> None:
        self.videos.append(_file(path))

    def switch_adapter(self, argument: str) -> None:
        self.models.base()  # which says if there is no other model
        self.adapter = _on(argument)

    def switch_compare(self, argument: str) -> None:
        self.models.base()
        self.compare = _on(argument)

    def set(self, argument: str) -> None:
        lengths, others = list[str](), list[str]()
        for pair in argument.split():
            (lengths if pair.startswith(f"{LENGTH}=") else others).append(pair)
        sampling = changed(self.talk.sampling, others)
        for pair in lengths:
            self.talk.max_new_tokens = _count(pair)
        self.talk.sampling = sampling
        values = {f.name: getattr(sampling, f.name) for f in fields(Sampling)}
        print(", ".join(f"{k}={v}" for k, v in {**values, LENGTH: self.talk.max_new_tokens}.items()))

    def retry(self, _: str) -> None:
        if not self.talk.unanswer():
            raise ValueError("nothing was answered yet")
        self.talk.sampling = self.talk.sampling.with_given(seed=self.talk.sampling.seed + 1)
        self._answer()

    def undo(self, _: str) -> None:
        if not self.talk.take_back():
            raise ValueError("nothing was asked yet")

    def clear(self, _: str) -> None:
        while self.talk.take_back():
            pass
        self.images, self.videos = [], []

    def help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            print(f"  {'/' + name + ' ' + command.arguments:<22}{command.help}")

    def quit(self, _: str) -> None:
        self.done = True

    def _answer(self) -> None:
        """Both models answer, or the one that is on; the last one's answer is what goes on."""
        for is_base in (True, False) if self.compare else (not self.adapter,):
            model, off = self.models.base() if is_base else (self.models.tuned, nullcontext())
            if self.compare:
                print("base:  " if is_base else "tuned: ", end="")
            with off:
                for piece in self.talk.answer(model, keep=not (self.compare and is_base)):
                    print(piece, end="", flush=True)
            print()

    def _prompt(self, typed: bool) -> None:
        if typed:
            print(
                f"{''.join(f'[{Path(p).name}] ' for p in (*self.images, *self.videos))}> ", end="", flush=True
            )


COMMANDS = {
    "image": ChatCommand(
        "FILE", "show an image with the next question; several add up", ChatSession.add_image
    ),
    "video": ChatCommand("FILE", "the same for a video", ChatSession.add_video),
    "adapter": ChatCommand("on|off", "who answers: the tuned model or its base", ChatSession.switch_adapter),
    "compare": ChatCommand("on|off", "both answer, the base first", ChatSession.switch_compare),
    "set": ChatCommand(
        "key=value ...", "how tokens are chosen, max_new_tokens; alone: show", ChatSession.set
    ),
    "retry": ChatCommand("", "answer again, with the next seed", ChatSession.retry),
    "undo": ChatCommand("", "forget the last question and its answer", ChatSession.undo),
    "clear": ChatCommand("", "forget all questions", ChatSession.clear),
    "help": ChatCommand("", "this list", ChatSession.help),
    "quit": ChatCommand("", "end; so does the end of the input", ChatSession.quit),
}


def _file(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"{path or 'no path given'}: no such file")
    return path


def _on(argument: str) -> bool:
    states: Sequence[str] = ("off", "on")
    if argument not in states:
        raise ValueError(f"expected on or off, got {argument!r}")
    return argument == "on"


def _count(pair: str) -> int:
    """The number in `max_new_tokens=N`."""
    _, _, text = pair.partition("=")
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{LENGTH}: expected a whole number of at least 1, got {text!r}")
    return int(text)
