"""How GLM-4.1V and GLM-4.6V write turns. Unusual: no token closes a turn, the next role's token does.

    [gMASK]<sop><|user|>\\n<|begin_of_image|> … <|end_of_image|>What is it?<|assistant|>\\nA cat.<|user|>\\n…

So that token is what an answer has to end with, and it is trained on as its end; generation_config.json
stops on it. An answer at the end of a training example is followed by `<|user|>`, which the template does
not write.

Sources: chat_template.jinja of zai-org/GLM-4.1V-9B-Thinking, revision 3c1471e5; zai-org/GLM-OCR's, a copy
in leehack/llamadart, test/unit/core/template/chat_template_engine_test.dart at 05779e1b, as long as
GLM-4.6V-Flash's (4.61 kB at revision 411bb4d). GLM-4.5V's own was not to be found; ms-swift writes all three
alike (swift/template/templates/glm.py at 3602360a). The end: huggingface/trl#6044, LLaMA-Factory's `glm4v`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, takewhile

from torchtune.data import Message

from torchtune_qwenvl.transforms.chat.chat_format import ChatFormat, Turn, has_media
from torchtune_qwenvl.transforms.chat.pieces import Marks, Piece, Special, with_text
from torchtune_qwenvl.transforms.chat.tools import Arguments, ToolFormat, Tools, parse_arguments, to_json
from torchtune_qwenvl.transforms.chat.video_format import VideoFormat
from torchtune_qwenvl.transforms.errors import BadSample

PREFIX = ("[gMASK]", "<sop>")
_IMAGE = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>")
_VIDEO = ("<|begin_of_video|>", "<|video|>", "<|end_of_video|>")
WHOLE_SECONDS = VideoFormat(marks=_VIDEO, patch=_IMAGE, after="{whole_seconds}")
TENTHS_OF_SECONDS = VideoFormat(marks=_VIDEO, patch=_IMAGE, after="{seconds:.1f} seconds")
_NO_THINKING = "/nothink"
_ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}


@dataclass(frozen=True)
class RoleTokenChat(ChatFormat):
    """GLM-4.1V's: a role's token, a newline, the content as it is. Knows no tools."""

    roles: dict[str, str] = field(default_factory=lambda: _ROLES)
    default_system: str | None = None
    image: Marks = _IMAGE
    video: VideoFormat = WHOLE_SECONDS
    stops: tuple[str, ...] = ("<|user|>",)
    media_roles: tuple[str, ...] | None = ("user",)

    @property
    def special_names(self) -> tuple[str, ...]:
        return (*PREFIX, *self.roles.values(), *self.image, *self.video.special_names)

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, tools: Tools = ()
    ) -> list[Turn]:
        turns = super().render(messages, generation_prompt=generation_prompt, tools=tools)
        stops = [Special(name) for name in self.stops]
        for turn, following in pairwise(turns):
            if turn.role == "assistant" and following.header[0] in stops:
                turn.ending.append(following.header.pop(0))
        turns[0].header[:0] = [Special(name) for name in PREFIX]
        return turns

    def end(self, turns: Sequence[Turn]) -> None:
        if turns[-1].role == "assistant":
            # After a call the model stops for the tool's result.
            turns[-1].ending = [Special(self.stops[-1 if turns[-1].calls else 0])]

    def turn(self, messages: Sequence[Message], number: int, content: list[Piece]) -> Turn:
        where = f"message {number}"
        if messages[number].ipython and "ipython" not in self.roles:
            raise BadSample("a tool call", where=where, fix=self.no_tools)
        return super().turn(messages, number, content)

    def _header(self, role: str) -> list[Piece]:
        return [Special(self.roles[role]), "\n"]

    def _turn(self, role: str, content: list[Piece], *, trained: bool, where: str = "") -> Turn:
        turn = super()._turn(role, content, trained=trained, where=where)
        turn.ending = []
        return turn


def _tagged_call(name: str, arguments: Arguments) -> str:
    given = parse_arguments(arguments, f"the call of {name}").items()
    texts = [(key, value if isinstance(value, str) else to_json(value)) for key, value in given]
    lines = [f"<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n" for key, text in texts]
    return f"<tool_call>{name}\n{''.join(lines)}</tool_call>"


_TOOLS = ToolFormat(
    after="""
</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>""",
    write_call=_tagged_call,
    own_turn=True,
)


@dataclass(frozen=True)
class ReasoningChat(RoleTokenChat):
    """GLM-4.6V's: an answer opens with its reasoning, which is empty in answers before the last question.

    `<think>` and the tools' tags are text here. Which tokens are special is the folder's to say:
    GLM-4.1V-9B-Base names 16, `<|endoftext|>` to `<|video|>`, no `<think>` (ai-bot-pro/achatbot#168);
    GLM-OCR's tokenizer_config.json (textagent/GLM-OCR-ONNX) has 36, GLM-4.6V's ids, `/nothink` among them.

    Args:
        question_mark: special token that ends every question, what the template's `enable_thinking=False`
            writes; if a question already ends with these letters, they are replaced by the token.
    """

    roles: dict[str, str] = field(default_factory=lambda: _ROLES | {"ipython": "<|observation|>"})
    stops: tuple[str, ...] = ("<|user|>", "<|observation|>")
    tool_call: tuple[str, str] = ("<tool_call>", "\n</tool_call>")
    tools: ToolFormat | None = _TOOLS
    media_roles: tuple[str, ...] | None = ("system", "user", "ipython")
    question_mark: str | None = None

    @property
    def special_names(self) -> tuple[str, ...]:
        return (*super().special_names, *filter(None, [self.question_mark]))

    def with_thinking(self, enabled: bool | None) -> ChatFormat:
        if enabled is None or enabled:
            return self
        return replace(
            self,
            question_mark=_NO_THINKING,
            answer_opening="<think></think>\n",
            template_arguments={"enable_thinking": False},
        )

    def turn(self, messages: Sequence[Message], number: int, content: list[Piece]) -> Turn:
        turn = super().turn(messages, number, content)
        if turn.role == "assistant":
            last_question = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
            shown = number > last_question
            turn.content = with_text(content, lambda text: _with_reasoning(text, shown=shown))
        elif turn.role == "user" and self.question_mark is not None:
            turn.content = [*_without_ending(content, self.question_mark), Special(self.question_mark)]
        elif turn.role == "ipython":
            first = number == 0 or messages[number - 1].role != "ipython"
            turn.header = [*turn.header[: 1 if first else 0], "\n<tool_response>\n"]
            # The template writes a newline after a string, but none after a list of parts.
            turn.ending = ["\n</tool_response>" if has_media(messages[number]) else "\n</tool_response>\n"]
        return turn


def _without_ending(content: Sequence[Piece], ending: str) -> list[Piece]:
    """`content` without `ending`; the pieces of text at its end are joined first."""
    texts = list(takewhile(lambda piece: isinstance(piece, str), reversed(content)))
    text = "".join(map(str, reversed(texts)))
    return [*content[: len(content) - len(texts)], text.removesuffix(ending)]


def _with_reasoning(text: str, *, shown: bool) -> str:
    """`<think>…</think>` and the answer; the reasoning is left out unless `shown`."""
    reasoning, answer = "", text
    if "</think>" in text:
        reasoning = text.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
        answer = text.split("</think>")[-1].lstrip("\n")
    thought = reasoning.strip() if shown else ""
    return f"<think>{thought}</think>" + (f"\n{answer.strip()}" if answer.strip() else "")
