"""Generate text from images, videos and a prompt, and print it as it comes.

    python -m torchtune_qwenvl.recipes.generate checkpoint_dir=DIR image=cat.jpg prompt="What do you see?"
    python -m torchtune_qwenvl.recipes.generate checkpoint_dir=DIR image=a.png image=b.png temperature=0.7
    python -m torchtune_qwenvl.recipes.generate checkpoint_dir=DIR video=cat.mp4 fps=1
    tune run torchtune_qwenvl/recipes/generate.py --config FILE.yaml prompt="..."     keys from a file

The folder is a published checkpoint, one written by finetune.py, or an adapter, ours or PEFT's. The model
gets the images first, then the videos, then the prompt. How tokens are chosen comes from the folder's
generation_config.json, where no key says otherwise. For all keys and their defaults, see `Settings`. For a
conversation of several turns: `tune-qwenvl chat DIR`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from omegaconf import OmegaConf

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.checkpoints.start import find_start, load_start
from torchtune_qwenvl.generation import Conversation, folder_sampling

# Arguments of the transform, and of `Sampling`.
OF_TRANSFORM = ("max_pixels", "fps", "max_frames", "video_total_pixels", "enable_thinking")
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Settings:
    """The keys of the recipe, given as key=value; for a list, repeat its key."""

    checkpoint_dir: str = ""
    base_dir: str | None = None  # the base model of an adapter; None: as its adapter_config.json says
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
    temperature: float | None = None  # 0: take the likeliest token; None, here and below: as the folder says
    top_k: int | None = None  # 0: all tokens
    top_p: float | None = None  # 1: all tokens
    min_p: float | None = None  # 0: all tokens
    repetition_penalty: float | None = None  # 1: none
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


def main(argv: Sequence[str]) -> str:
    """Generate and print token by token; returns the whole text."""
    settings = parse(argv)
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    start = find_start(settings.checkpoint_dir, settings.base_dir)
    transform = load_transform(start.checkpoint, **{name: getattr(settings, name) for name in OF_TRANSFORM})
    sampling, ignored = folder_sampling(start.checkpoint)
    if ignored:
        print(f"generation_config.json: {', '.join(ignored)} is not followed", file=sys.stderr)
    sampling = sampling.with_given(**{name: getattr(settings, name) for name in OF_SAMPLING})
    talk = Conversation(transform, sampling, settings.max_new_tokens, settings.system)
    talk.ask(settings.prompt, settings.image, settings.video)
    model = load_start(start, DTYPES.get(settings.dtype or ""), device).eval()
    pieces = []
    for piece in talk.answer(model):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
