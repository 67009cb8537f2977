"""A conversation as the model's chat template writes it, as pieces instead of one string.

In a string rendered by Jinja, a user's `<|im_end|>` looks the same as the template's. Here a turn is a list
of pieces (text, special tokens, media), so a user's text stays text. `ChatFormat` holds what differs between
models; `template_check` compares the result with the checkpoint's own Jinja template.

    user: [image] "What is this?"   ->   <|im_start|> "user\\n" <|vision_start|> [image] <|vision_end|>
                                         "What is this?" <|im_end|> "\\n"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.transforms.boxes.writing import MARK
from torchtune_qwenvl.transforms.chat.pieces import Marks, MediaSlot, Piece, Placeholders, Special
from torchtune_qwenvl.transforms.chat.tools import TOOL_CALL, ToolFormat, Tools, calls_of
from torchtune_qwenvl.transforms.chat.video_format import ONE_BLOCK, VideoFormat
from torchtune_qwenvl.transforms.chat.weights import weight_of
from torchtune_qwenvl.transforms.errors import BadSample

MEDIA = ("image", "video")


@dataclass(frozen=True)
class ChatFormat:
    """How a family writes turns.

    Args:
        roles: torchtune's role -> the role in the header.
        default_system: text of the system turn added to a conversation that has none; None: none is added.
        turn_start, turn_end: special tokens around a turn.
        image: special tokens of an image: start, placeholder (repeated once per visual token), end.
        video: how a video is written.
        tool_call: text before and after the content of a message that is a tool call (`Message.ipython`).
        tools: how the list of tools and the calls of an answer are written; None: tools are refused.
        no_tools: why tools are refused, for the error message.
        answer_opening: text after the header of the answer that a generation prompt opens.
        stops: special tokens that end an answer, in addition to the tokenizer's end of turn.
        media_roles: torchtune's roles whose images and videos the template writes; None: every role.
        template_arguments: variables that the folder's Jinja template needs to render the same text.
    """

    roles: Mapping[str, str]
    default_system: str | None
    turn_start: str = "<|im_start|>"
    turn_end: str = "<|im_end|>"
    image: Marks = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    video: VideoFormat = ONE_BLOCK
    tool_call: tuple[str, str] = ("<tool_call>\n", "\n</tool_call>")
    tools: ToolFormat | None = None
    no_tools: str = "this model's chat template knows no tools"
    answer_opening: str = ""
    stops: tuple[str, ...] = ()
    media_roles: tuple[str, ...] | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def special_names(self) -> tuple[str, ...]:
        """All special tokens that a rendered conversation can contain."""
        return (self.turn_start, self.turn_end, *self.image, *self.video.special_names)

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, tools: Tools = ()
    ) -> list[Turn]:
        """The conversation's turns, including the default system turn and the opened answer.

        Raises:
            BadSample: no messages, an unknown role or part, or tools or calls that the template cannot write.
        """
        if not messages:
            raise BadSample("the conversation is empty", fix="give at least a user and an assistant message")
        turns = []
        if self.default_system is not None and messages[0].role != "system":
            turns.append(self._turn("system", [self.default_system], trained=False))
        n_media = 0
        for number, message in enumerate(messages):
            self._check_media(message, number)
            content = _content_pieces(message, number, n_media)
            n_media += sum(isinstance(piece, MediaSlot) for piece in content)
            if message.ipython:
                content = [self.tool_call[0], *content, self.tool_call[1]]
            turn = self.turn(messages, number, content)
            if calls := calls_of(message):
                self._add_calls(turn, message, calls, where=f"message {number}")
            turn.calls = message.ipython or bool(calls)
            turns.append(turn)
        if tools:
            self._add_tools(turns, tools)
        if generation_prompt:
            opening = [self.answer_opening] if self.answer_opening else []
            turns.append(Turn("assistant", [*self._header("assistant"), *opening]))
        return turns

    def with_thinking(self, enabled: bool | None) -> ChatFormat:
        """The format that the template uses with `enable_thinking=enabled`; None: the switch is not given.

        Raises:
            ValueError: the template has no such switch.
        """
        if enabled is None:
            return self
        raise ValueError(
            f"enable_thinking={enabled}: this model's chat template has no such switch; leave it out"
        )

    def turn(self, messages: Sequence[Message], number: int, content: list[Piece]) -> Turn:
        """The turn of `messages[number]` with the pieces `content`; families may override this."""
        message, weight = messages[number], weight_of(messages[number])
        turn = self._turn(message.role, content, trained=weight > 0, where=f"message {number}")
        turn.weight = weight
        return turn

    def expand(self, slot: MediaSlot, n_patches: int, timestamps: Sequence[float] = ()) -> list[Piece]:
        """Replace the slot of an image, or of a video of `n_patches` temporal patches, by its tokens."""
        if slot.kind == "video":
            return self.video.expand(slot.index, n_patches, timestamps)
        before, placeholder, after = self.image
        return [Special(before), Placeholders(placeholder, slot.index, range(1)), Special(after)]

    def end(self, turns: Sequence[Turn]) -> None:
        """End the last answer of a training example, for families whose template leaves it open."""

    def write(self, turns: Sequence[Turn]) -> str:
        """The turns as one string, as the Jinja template renders them: one placeholder per image or video."""
        return "".join(self._write_piece(piece) for turn in turns for piece in turn.pieces)

    def before_calls(self, message: Message, turn: Turn) -> str:
        """Text before the first call of an answer; `turn` holds the answer without its calls."""
        return "\n" if any(turn.content) else ""

    def _add_calls(
        self, turn: Turn, message: Message, calls: Sequence[Mapping[str, Any]], where: str
    ) -> None:
        if message.role != "assistant":
            raise BadSample(f"a tool call in a message of role {message.role!r}", where=where)
        text = self._tool_format("a tool call", where).write_calls(calls)
        turn.content.append(self.before_calls(message, turn) + text)

    def _add_tools(self, turns: list[Turn], tools: Tools) -> None:
        tool_format = self._tool_format("a list of tools", "tools")
        text = tool_format.write_tools(tools)
        if turns[0].role == "system" and not tool_format.own_turn:
            turns[0].content.append(f"\n\n{text}")
        else:
            turns.insert(0, self._turn("system", [text], trained=False))

    def _tool_format(self, what: str, where: str) -> ToolFormat:
        if self.tools is None:
            fix = "write tools and calls as text, or leave them out"
            raise BadSample(f"{what}, but {self.no_tools}", where=where, fix=fix)
        return self.tools

    def _check_media(self, message: Message, number: int) -> None:
        if self.media_roles is not None and message.role not in self.media_roles and has_media(message):
            raise BadSample(
                f"an image or a video in a message of role {message.role!r}",
                where=f"message {number}",
                fix=f"this model's chat template allows them only in {', '.join(self.media_roles)} messages",
            )

    def _write_piece(self, piece: Piece) -> str:
        if isinstance(piece, MediaSlot):
            return "".join(self.video.marks if piece.kind == "video" else self.image)
        return piece if isinstance(piece, str) else piece.name

    def _turn(self, role: str, content: list[Piece], *, trained: bool, where: str = "") -> Turn:
        if role not in self.roles:
            raise BadSample(
                f"unknown role {role!r}",
                where=where,
                fix=f"this model's chat template knows {', '.join(self.roles)}",
            )
        return Turn(role, self._header(role), content, [Special(self.turn_end), "\n"], trained)

    def _header(self, role: str) -> list[Piece]:
        return [Special(self.turn_start), f"{self.roles[role]}\n"]


@dataclass
class Turn:
    """One turn: header, content and ending as pieces.

    Attributes:
        role: torchtune's role.
        header, content, ending: the pieces, in this order.
        trained: whether content and ending count in the loss.
        weight: of their tokens in it.
        calls: whether the turn is an answer that calls tools.
    """

    role: str
    header: list[Piece]
    content: list[Piece] = field(default_factory=list)
    ending: list[Piece] = field(default_factory=list)
    trained: bool = False
    calls: bool = False
    weight: float = 1.0

    @property
    def pieces(self) -> list[Piece]:
        return [*self.header, *self.content, *self.ending]


def media_parts(messages: Sequence[Message]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every image and video part in order, each with its location for error messages."""
    return [
        (f"message {number}, part {place}", part)
        for number, message in enumerate(messages)
        for place, part in enumerate(message.content)
        if part.get("type") in MEDIA
    ]


def has_media(message: Message) -> bool:
    """Whether the message has an image or a video; torchtune's `contains_media` looks for images only."""
    return any(part.get("type") in MEDIA for part in message.content)


def _content_pieces(message: Message, number: int, n_media: int) -> list[Piece]:
    pieces: list[Piece] = []
    for place, part in enumerate(message.content):
        kind = part.get("type")
        if kind in MEDIA:
            pieces.append(MediaSlot(kind, n_media))
            n_media += 1
        elif kind == "text" and isinstance(part.get("content"), str):
            pieces.append(part["content"])
        elif kind == MARK:
            pieces.append(Special(part["content"]))
        elif kind != TOOL_CALL:
            came = f"{kind!r} with {type(part.get('content')).__name__} content"
            raise BadSample(
                f"expected a text part with a string, an image or a video, got {came}",
                where=f"message {number}, part {place}",
            )
    return pieces
