"""Compare our rendering of conversations with the checkpoint's own Jinja template, once, when it is loaded.

A fine-tuned or newer checkpoint may have a different template. Training with ours would then teach a format
that servers do not send. The Jinja code comes from a downloaded file, so it is rendered under limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.transforms.chat.chat_format import ChatFormat, has_media
from torchtune_qwenvl.transforms.chat.rendering import render_all
from torchtune_qwenvl.transforms.chat.tools import TOOL_CALL, Tools, calls_of

_IMAGE = {"type": "image", "content": "probe.png"}
_VIDEO = {"type": "video", "content": "probe.mp4"}
_TEXT = {"type": "text", "content": " What is\n\nthis? "}
PROBES: dict[str, list[Message]] = {
    "one question": [Message("user", "Hello")],
    "one exchange": [Message("user", [_IMAGE, _TEXT]), Message("assistant", "A cat.\n")],
    "system, several turns and images": [
        Message("system", " Be brief. "),
        Message("user", [_TEXT, _IMAGE, _IMAGE, _TEXT]),
        Message("assistant", "Two cats."),
        Message("user", [_IMAGE]),
        Message("assistant", ""),
    ],
    "tool answer": [
        Message("user", "Hello"),
        Message("assistant", "Wait."),
        Message("ipython", "42"),
        Message("ipython", "43"),
        Message("assistant", "85."),
    ],
    "image in a tool answer": [
        Message("user", "Hello"),
        Message("assistant", "Wait."),
        Message("ipython", [_TEXT, _IMAGE]),
        Message("ipython", "43"),
        Message("assistant", "Two cats."),
    ],
    "reasoning": [
        Message("user", "Hello"),
        Message("assistant", "<think>\nA greeting.\n</think>\n\nHello."),
        Message("user", "How are you?"),
        Message("assistant", "<think>\nPoliteness.\n</think>\n\nWell."),
    ],
}
# Checked separately: a template that leaves out videos can still be used for everything else.
VIDEO_PROBES: dict[str, list[Message]] = {
    "videos and images": [
        Message("user", [_VIDEO, _TEXT, _IMAGE, _VIDEO]),
        Message("assistant", "A film."),
    ],
}

# Checked separately: a template that writes tools differently, or not at all, can still be used without
# tools.
_ADD = {"name": "add", "description": "<a> + é", "parameters": {"type": "object", "properties": {"a": {}}}}
PROBE_TOOLS = ({"type": "function", "function": _ADD}, {"type": "function", "function": {"name": "now"}})
_CALLS = [
    {"type": TOOL_CALL, "content": {"name": "add", "arguments": {"a": ["é", None, 1.5], "b": "x"}}},
    {"type": TOOL_CALL, "content": {"name": "now", "arguments": {}}},
]
TOOL_PROBES: dict[str, list[Message]] = {
    "tools": [
        Message("user", "Add."),
        Message("assistant", [{"type": "text", "content": "Wait."}, *_CALLS]),
        Message("ipython", "42"),
        Message("assistant", _CALLS),
    ],
    "tools after a system message": [Message("system", "Be brief."), Message("user", "Hello")],
}


def check_template(
    chat: ChatFormat,
    template: str,
    source: str,
    probes: Mapping[str, list[Message]] = PROBES,
    tools: Tools = (),
) -> None:
    """Check that `chat` and `template` render the probes alike.

    Args:
        chat: our format.
        template: Jinja source.
        source: the file it came from, for the error message.
        probes: conversations by name.
        tools: the tools of these conversations.

    Raises:
        ValueError: the two differ, or the template cannot be rendered; names the probe and the first
            difference.
    """
    arguments = {**chat.template_arguments, **({"tools": list(tools)} if tools else {})}
    hint = 'pass chat_template="builtin" to use the built-in rendering'
    known = {name: probe for name, probe in probes.items() if _can_write(chat, probe)}
    cases = [(name, messages, prompt) for name, messages in known.items() for prompt in (False, True)]
    theirs = render_all(
        template, [template_variables(messages, prompt, **arguments) for _, messages, prompt in cases]
    )
    for (name, messages, prompt), rendering in zip(cases, theirs, strict=True):
        if rendering.error is not None:
            raise ValueError(
                f"{source}: this template cannot be rendered on the probe {name!r}: {rendering.error}; {hint}"
            )
        ours = chat.write(chat.render(messages, generation_prompt=prompt, tools=tools))
        if ours != rendering.text:
            span = _first_difference(ours, rendering.text)
            raise ValueError(f"{source}: on the probe {name!r} {span}; {hint}")


def template_variables(
    messages: Sequence[Message], generation_prompt: bool = False, **arguments: Any
) -> dict[str, Any]:
    """What transformers gives to a template.

    Args:
        messages: the conversation.
        generation_prompt: whether to open the assistant's turn at the end.
        **arguments: more variables, such as `enable_thinking` and `tools`.
    """
    plain = [_plain(message) for message in messages]
    return {"messages": plain, "add_generation_prompt": generation_prompt, **arguments}


def _can_write(chat: ChatFormat, messages: Sequence[Message]) -> bool:
    media_roles = chat.roles if chat.media_roles is None else chat.media_roles
    return all(m.role in chat.roles and (m.role in media_roles or not has_media(m)) for m in messages)


def _first_difference(ours: str, theirs: str, margin: int = 30) -> str:
    start = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    shown = slice(max(0, start - margin), start + margin)
    return (
        f"the renderings differ from character {start} on: the template gives {theirs[shown]!r}, "
        f"ours {ours[shown]!r}"
    )


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": "tool" if message.role == "ipython" else message.role}
    if calls := calls_of(message):
        plain["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    if not has_media(message):
        return {**plain, "content": message.text_content}
    plain["content"] = [
        {"type": "text", "text": part["content"]} if part["type"] == "text" else {"type": part["type"]}
        for part in message.content
        if part["type"] != TOOL_CALL
    ]
    return plain
