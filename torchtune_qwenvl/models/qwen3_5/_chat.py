"""Qwen3.5's chat format: content without blanks around it, reasoning in the last answers, calls as tags.

Answers after the last question carry a block of reasoning, empty if there is none; earlier answers lose
theirs. A generation prompt opens the block, or with enable_thinking=False writes an empty one:

    user "A?"   assistant "1"                        ->  <|im_start|>assistant\\n1<|im_end|>
    user "B?"   assistant "2"                        ->
    <|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n2<|im_end|>

The list of tools comes before the text of the system turn. Source: chat_template.jinja of
Qwen/Qwen3.5-35B-A3B, a copy in rtp-llm (rtp_llm/frontend/tokenizer_factory, qwen_tokenizers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.models.qwen3_vl._chat import ROLES, Qwen3Chat, last_question, split_reasoning
from torchtune_qwenvl.transforms.chat.chat_format import ChatFormat, Turn
from torchtune_qwenvl.transforms.chat.pieces import Piece
from torchtune_qwenvl.transforms.chat.tools import Arguments, ToolFormat, Tools, parse_arguments, to_json
from torchtune_qwenvl.transforms.errors import BadSample

_OPENING = "<think>\n"
_EMPTY = "<think>\n\n</think>\n\n"


def _tagged_call(name: str, arguments: Arguments) -> str:
    given = parse_arguments(arguments, f"the call of {name}").items()
    written = [f"<parameter={key}>\n{_argument(value)}\n</parameter>\n" for key, value in given]
    return f"<tool_call>\n<function={name}>\n{''.join(written)}</function>\n</tool_call>"


def _argument(value: Any) -> str:
    return to_json(value) if isinstance(value, (dict, list)) else str(value)


TOOLS = ToolFormat(
    before="# Tools\n\nYou have access to the following functions:\n\n<tools>\n",
    after="""
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell the user about function calls
</IMPORTANT>""",  # noqa: E501
    write_call=_tagged_call,
)


@dataclass(frozen=True)
class Qwen3_5Chat(Qwen3Chat):
    """`Qwen3Chat` with trimmed content, reasoning after the last question, and tagged calls."""

    tools: ToolFormat | None = TOOLS
    thinking: bool = True
    answer_opening: str = _OPENING

    def with_thinking(self, enabled: bool | None) -> ChatFormat:
        """See `ChatFormat.with_thinking`."""
        if enabled is None:
            return self
        opening = _OPENING if enabled else _EMPTY
        return replace(self, answer_opening=opening, template_arguments={"enable_thinking": enabled})

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, tools: Tools = ()
    ) -> list[Turn]:
        """See `ChatFormat.render`; needs a question, as the template does."""
        if messages and last_question(messages, trimmed=True) is None:
            raise BadSample("no question of a user", fix="this model's chat template needs one")
        return super().render(messages, generation_prompt=generation_prompt, tools=tools)

    def turn(self, messages: Sequence[Message], number: int, content: list[Piece]) -> Turn:
        """See `ChatFormat.turn`."""
        return super().turn(messages, number, _trimmed(content))

    def _tool_result(self, messages: Sequence[Message], number: int, content: list[Piece]) -> Turn:
        if number == 0:  # the template writes it without the header of a turn
            raise BadSample("a tool's result before any question", where="message 0", fix="put it later")
        return super()._tool_result(messages, number, content)

    def _thought(self, messages: Sequence[Message], number: int, text: str) -> str:
        reasoning, answer = split_reasoning(text)
        question = last_question(messages, trimmed=True)
        if question is not None and number > question:
            return f"{_OPENING}{reasoning.strip()}\n</think>\n\n{answer}"
        return answer

    def before_calls(self, message: Message, turn: Turn) -> str:
        """See `ChatFormat.before_calls`."""
        return "\n\n" if split_reasoning(message.text_content.strip())[1].strip() else ""

    def _add_tools(self, turns: list[Turn], tools: Tools) -> None:
        text = self._tool_format("a list of tools", "tools").write_tools(tools)
        if turns[0].role != "system":
            turns.insert(0, self._turn("system", [text], trained=False))
            return
        content = turns[0].content
        turns[0].content = [text, *(["\n\n", *content] if any(content) else [])]


def _trimmed(content: Sequence[Piece]) -> list[Piece]:
    """Content without blanks at its ends."""
    pieces = list(content)
    while pieces and isinstance(pieces[0], str):
        pieces[0] = pieces[0].lstrip()
        if pieces[0]:
            break
        pieces.pop(0)
    while pieces and isinstance(pieces[-1], str):
        pieces[-1] = pieces[-1].rstrip()
        if pieces[-1]:
            break
        pieces.pop()
    return pieces


CHAT = Qwen3_5Chat(roles=ROLES, default_system=None)
