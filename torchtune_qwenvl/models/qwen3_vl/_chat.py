"""Qwen3-VL's two chat formats, Instruct and Thinking, as data of one class.

Unlike Qwen2.5-VL's format they have no default system turn. Tools follow the system turn's text, and tool
results, several at a time, are inside a user's turn. In the Thinking format, answers after the last question
begin with their reasoning; earlier answers lose it:

    user "A?"   assistant "<think> x </think> 1"     ->  <|im_start|>assistant 1<|im_end|>
    user "B?"   assistant "<think> y </think> 2"     ->  <|im_start|>assistant <think> y </think> 2<|im_end|>

Source: chat_template of the published checkpoints; Thinking's in tokenizer_config.json of
Qwen3-VL-32B-Thinking-FP8, a copy in hlky/dinoml_v2 at 6b8c0acb, agents/plans/transformers/qwen3_vl/_sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchtune.data import Message

from torchtune_qwenvl.transforms.chat.chat_format import ChatFormat, Turn
from torchtune_qwenvl.transforms.chat.pieces import Piece, Special, with_text
from torchtune_qwenvl.transforms.chat.tools import Arguments, ToolFormat, to_json
from torchtune_qwenvl.transforms.chat.video_format import VideoFormat
from torchtune_qwenvl.transforms.errors import BadSample

_MEDIUM = "<>"  # a placeholder for an image or a video
_RESULT = ("\n<tool_response>\n", "\n</tool_response>")
_VIDEO = VideoFormat(
    patch=("<|vision_start|>", "<|video_pad|>", "<|vision_end|>"), before="<{seconds:.1f} seconds>"
)


def _json_call(name: str, arguments: Arguments) -> str:
    # The template writes a string unchanged.
    written = arguments if isinstance(arguments, str) else to_json(arguments)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {written}}}\n</tool_call>'


TOOLS = ToolFormat(
    after="""
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>""",  # noqa: E501
    write_call=_json_call,
)


@dataclass(frozen=True)
class Qwen3Chat(ChatFormat):
    """`ChatFormat` with tool results in user turns.

    Args:
        thinking: whether answers carry their reasoning, as the module's example shows.
    """

    video: VideoFormat = _VIDEO
    media_roles: tuple[str, ...] | None = ("user", "ipython")
    tools: ToolFormat | None = TOOLS
    thinking: bool = False

    def turn(self, messages: Sequence[Message], number: int, content: list[Piece]) -> Turn:
        """See `ChatFormat.turn`."""
        message = messages[number]
        if message.role == "system" and number:
            raise BadSample(
                "a system message after the first message", where=f"message {number}", fix="put it first"
            )
        if message.role == "ipython":
            return self._tool_result(messages, number, content)
        if message.role == "assistant" and self.thinking:
            content = with_text(content, lambda text: self._thought(messages, number, text))
        return super().turn(messages, number, content)

    def before_calls(self, message: Message, turn: Turn) -> str:
        """See `ChatFormat.before_calls`; the Thinking template looks at the answer without reasoning."""
        if self.thinking:
            return "\n" if split_reasoning(message.text_content)[1] else ""
        return super().before_calls(message, turn)

    def _tool_result(self, messages: Sequence[Message], number: int, content: list[Piece]) -> Turn:
        """Neighbouring results share one turn of the user: the first opens it, the last ends it."""
        opens = number == 0 or messages[number - 1].role != "ipython"
        ends = number + 1 == len(messages) or messages[number + 1].role != "ipython"
        header: list[Piece] = [Special(self.turn_start), "user"] if opens else []
        ending: list[Piece] = [Special(self.turn_end), "\n"] if ends else []
        return Turn("ipython", header, [_RESULT[0], *content, _RESULT[1]], ending)

    def _thought(self, messages: Sequence[Message], number: int, text: str) -> str:
        reasoning, answer = split_reasoning(text)
        question = last_question(messages)
        behind_the_question = number > (len(messages) - 1 if question is None else question)
        if behind_the_question and (reasoning or number + 1 == len(messages)):
            return f"<think>\n{reasoning}\n</think>\n\n" + answer.lstrip("\n")
        return answer


def split_reasoning(text: str) -> tuple[str, str]:
    """(reasoning, the answer after it)."""
    reasoning, closed, answer = text.rpartition("</think>")
    if not closed:
        return "", text
    reasoning = text.split("</think>")[0].rstrip("\n").split("<think>")[-1].strip("\n")
    return reasoning, answer.lstrip("\n")


def last_question(messages: Sequence[Message], trimmed: bool = False) -> int | None:
    """Index of the last user message that is no tool result written as text; None: there is none.

    Args:
        messages: the conversation.
        trimmed: whether blanks around a tool result do not count.
    """
    for number in reversed(range(len(messages))):
        if messages[number].role != "user":
            continue
        parts = messages[number].content
        text = "".join(part["content"] if part["type"] == "text" else _MEDIUM for part in parts)
        text = text.strip() if trimmed else text
        if not (text.startswith("<tool_response>") and text.endswith("</tool_response>")):
            return number
    return None


ROLES = {"system": "system", "user": "user", "assistant": "assistant", "ipython": "user"}
INSTRUCT = Qwen3Chat(roles=ROLES, default_system=None)
THINKING = Qwen3Chat(roles=ROLES, default_system=None, answer_opening="<think>\n", thinking=True)
