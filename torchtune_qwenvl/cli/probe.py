"""`tune-qwenvl probe`: which layer and pooling of an encoder suit your classes."""

import argparse
from pathlib import Path
from typing import Literal

from torchtune_qwenvl.cli.encoder_arguments import add_encoder_arguments, encoder_settings, load_pipeline

EPILOG = """\
example:
  tune-qwenvl probe classes/ --encoder /tmp/Qwen3-VL-2B-Instruct --tokens 256 --plot layers.png

classes/ holds a folder of images per class. Each layer and pooling is judged on images held out of each
class, by nearest neighbours and by a ridge classifier.
"""


class Probe:
    """Prints a table, and draws it."""

    def __init__(self, subparsers) -> None:
        parser = subparsers.add_parser(
            "probe",
            description="Classify the images of a folder by every layer and pooling of an encoder.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("folder", metavar="FOLDER", help="a folder of images per class")
        add_encoder_arguments(parser)
        parser.add_argument("--layers", default="all", help="all, or indexes with commas: 5,11,-1")
        parser.add_argument("--pools", help="of mean,max,cls; default: all that the encoder has")
        parser.add_argument("-k", type=int, default=5, metavar="N", help="neighbours; default: %(default)s")
        parser.add_argument(
            "--held-out", type=float, default=0.25, metavar="SHARE", help="default: %(default)s"
        )
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split")
        parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the table")
        parser.set_defaults(func=self._probe)

    def _probe(self, args: argparse.Namespace) -> None:
        from torchtune_qwenvl.vision import probe

        result = probe(
            load_pipeline(encoder_settings(args), args.device),
            args.folder,
            layer_list(args.layers),
            args.pools.split(",") if args.pools else None,
            k=args.k,
            held_out=args.held_out,
            seed=args.seed,
            workers=args.workers,
            batch_tokens=args.batch_tokens,
        )
        print(result)
        if args.plot:
            result.plot(args.plot)
            print(f"plot: {args.plot}")


def layer_list(text: str) -> list[int] | Literal["all"]:
    """The word all, or indexes with commas.

    Raises:
        ValueError: something else.
    """
    try:
        return "all" if text == "all" else [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--layers: expected all, or indexes with commas, got {text!r}") from None
