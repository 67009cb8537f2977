"""Generate text from images, videos and a prompt, and print it as it comes.

    python -m torchtune_qwenvl.recipes.generate checkpoint_dir=DIR image=cat.jpg prompt="What do you see?"
    python -m torchtune_qwenvl.recipes.generate checkpoint_dir=DIR image=a.png image=b.png temperature=0.7
    python -m torchtune_qwenvl.recipes.generate checkpoint_dir=DIR video=cat.mp4 fps=1
    tune run torchtune_qwenvl/recipes/generate.py --config FILE.yaml prompt="..."     keys from a file

The folder is a published checkpoint or one written by finetune.py. The model gets the images first, then the
videos, then the prompt. For all keys and their defaults, see `Settings`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from omegaconf import OmegaConf
from torchtune.data import Message

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.generation import Sampling, stream

# Arguments of the transform.
OF_TRANSFORM = ("max_pixels", "fps", "max_frames", "video_total_pixels", "enable_thinking")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Settings:
    """The keys of the recipe, given as key=value; for a list, repeat its key."""

    checkpoint_dir: str = ""
    prompt: str = "Describe what you see."
    image: list[str] = field(default_factory=list)
    video: list[str] = field(default_factory=list)
    system: str | None = None
    max_pixels: int | None = None  # per image; None: the limit in the folder
    fps: float | None = None  # frames read per second of video; None: as in the folder, or 2
    max_frames: int | None = None  # per video; None: as in the folder, or 768
    video_total_pixels: int | None = 1605632  # per video, two frames counted once: 2,048 tokens of 28 x 28
    enable_thinking: bool | None = None  # for chat templates that know it, see `PublishedTransform`
    max_new_tokens: int = 512
    temperature: float = 0.0  # 0: take the likeliest token
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    device: str | None = None  # None: CUDA if available
    dtype: str | None = None  # bf16, fp16, fp32; None: that of the folder


def parse(argv: Sequence[str]) -> Settings:
    """Settings from `[--config FILE] key=value ...`; everything after the first = is the value.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or no checkpoint_dir.
    """
    arguments, given = list(argv), dict[str, Any]()
    if "--config" in arguments[:-1]:
        at = arguments.index("--config")
        given = dict(OmegaConf.to_container(OmegaConf.load(arguments[at + 1])))  # type: ignore[arg-type]
        del arguments[at : at + 2]
    media: dict[str, list[str]] = {"image": [], "video": []}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"expected arguments of the form key=value, got {argument!r}")
        if key in media:
            media[key].append(value)
        given[key] = media.get(key, value)
    known = [setting.name for setting in fields(Settings)]
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"unknown key {unknown[0]!r}, expected one of {', '.join(known)}")
    settings: Settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), given))  # type: ignore
    if not settings.checkpoint_dir:
        raise ValueError("checkpoint_dir is missing: name a checkpoint folder")
    if settings.dtype not in (None, *DTYPES):
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {settings.dtype!r}")
    return settings


def messages_of(settings: Settings) -> list[Message]:
    """The conversation: a system message if there is one, then one of the user: images, videos, prompt."""
    media = (("image", settings.image), ("video", settings.video))
    content: list[dict[str, Any]] = [
        {"type": kind, "content": path} for kind, paths in media for path in paths
    ]
    content.append({"type": "text", "content": settings.prompt})
    system = [] if settings.system is None else [Message(role="system", content=settings.system)]
    return [*system, Message(role="user", content=content)]


def new_text(decode: Callable[[list[int]], str], tokens: list[int], shown: str) -> str:
    """The text of `tokens` after `shown`, up to the last whole character; one may need several tokens."""
    return decode(tokens).rstrip("\ufffd").removeprefix(shown)


def main(argv: Sequence[str]) -> str:
    """Generate and print token by token; returns the whole text."""
    settings = parse(argv)
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    overrides = {name: getattr(settings, name) for name in OF_TRANSFORM}
    transform = load_transform(settings.checkpoint_dir, **overrides)
    sample = transform({"messages": messages_of(settings)}, inference=True)
    model = load_model(settings.checkpoint_dir, dtype=DTYPES.get(settings.dtype or ""), device=device).eval()
    steps = stream(
        model,
        [sample],
        pad_id=transform.pad_id,
        stop_tokens=transform.stop_tokens,
        max_new_tokens=settings.max_new_tokens,
        sampling=Sampling(settings.temperature, settings.top_k, settings.top_p, settings.seed),
    )
    tokens: list[int] = []
    shown = ""
    for (token,) in steps:
        tokens += [] if token is None else [token]
        text = new_text(transform.decode, tokens, shown)
        print(text, end="", flush=True)
        shown += text
    print()
    return shown


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
