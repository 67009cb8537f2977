"""Options of the commands that load a vision encoder; an index keeps them to load it again."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchtune_qwenvl.vision import VisionPipeline

DTYPES = ("float32", "bfloat16", "float16")


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """--encoder and how its images are read."""
    parser.add_argument(
        "--encoder", metavar="DIR", required=True, help="a checkpoint folder, or an encoder's own"
    )
    group = parser.add_argument_group("how images are read; default: as the folder says")
    group.add_argument("--min-pixels", type=int, metavar="N", help="fewest pixels of a resized image")
    group.add_argument("--max-pixels", type=int, metavar="N", help="most pixels of a resized image")
    group.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="stretch every image to this size"
    )
    group.add_argument("--tokens", type=int, metavar="N", help="exactly so many visual tokens per image")
    add_machine_arguments(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: the files'")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode images")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="most patches at once")


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda, ...; default: %(default)s"
    )


def encoder_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What makes a pipeline, as plain values; what was not given is left out."""
    names = ("min_pixels", "max_pixels", "size", "tokens", "dtype")
    return {"folder": absolute(args.encoder)} | {
        name: value for name in names if (value := getattr(args, name)) is not None
    }


def load_pipeline(settings: Mapping[str, Any], device: str) -> VisionPipeline:
    """A pipeline from `encoder_settings`."""
    import torch

    from torchtune_qwenvl.vision import VisionPipeline

    options = dict(settings)
    folder, dtype, size = options.pop("folder"), options.pop("dtype", None), options.pop("size", None)
    return VisionPipeline.from_checkpoint(
        folder,
        dtype and getattr(torch, dtype),
        device,
        size=size and (size[0], size[1]),
        **options,
    )


def absolute(path: str) -> str:
    """A path that still holds from another working directory."""
    import os

    return os.path.abspath(path)
