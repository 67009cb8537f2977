"""`tune-qwenvl embed`: a folder of images becomes an index to search in."""

import argparse
from pathlib import Path

from torchtune_qwenvl.cli.encoder_arguments import add_encoder_arguments, encoder_settings, load_pipeline
from torchtune_qwenvl.counted import counted

EPILOG = """\
examples:
  tune-qwenvl embed photos/ --encoder /tmp/Qwen3-VL-2B-Instruct --out photos.index --max-pixels 262144
  tune-qwenvl search photos.index query.jpg -k 10 --sheet hits.png

Run it again to go on after a stop, or to add new images. Bad images are named and left out. --out then holds
part-*.npy (the vectors), files.jsonl (their names), failed.jsonl (bad images and why) and meta.json.
"""


class Embed:
    """Writes the vectors of images."""

    def __init__(self, subparsers) -> None:
        parser = subparsers.add_parser(
            "embed",
            description="Encode images into vectors, in a folder that `search` and ImageIndex.load open.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("images", nargs="+", metavar="IMAGES", help="a folder, or files and folders")
        parser.add_argument("--out", metavar="DIR", required=True, help="the index")
        add_encoder_arguments(parser)
        parser.add_argument(
            "--pool",
            default="mean",
            help="mean, max or cls; none keeps all tokens, for late interaction; default: %(default)s",
        )
        parser.add_argument(
            "--factor", type=int, default=1, metavar="N", help="with --pool none: N similar tokens become one"
        )
        parser.add_argument("--layer", type=int, metavar="N", help="default: the encoder's output")
        parser.add_argument("--half", action="store_true", help="store the vectors as float16")
        parser.add_argument(
            "--on-bad", choices=("skip", "raise"), default="skip", help="default: %(default)s"
        )
        parser.add_argument("--retry-failed", action="store_true", help="try images that failed once more")
        parser.add_argument(
            "--clip-retrieval", metavar="DIR", help="also write the index in clip-retrieval's layout"
        )
        parser.set_defaults(func=self._embed)

    def _embed(self, args: argparse.Namespace) -> None:
        from torchtune_qwenvl.vision.index import ImageIndex

        settings = encoder_settings(args)
        pipeline = load_pipeline(settings, args.device)
        images = args.images[0] if len(args.images) == 1 else args.images
        index = ImageIndex.build(
            images,
            pipeline,
            args.out,
            pool=None if args.pool == "none" else args.pool,
            factor=args.factor,
            layer=args.layer,
            dtype="float16" if args.half else "float32",
            encoder=settings,
            on_bad=args.on_bad,
            workers=args.workers,
            batch_tokens=args.batch_tokens,
            retry_failed=args.retry_failed,
            progress=True,
        )
        for reason in index.failed.values():
            print(f"left out: {reason}")
        print(
            f"{counted(len(index), 'image')}, {len(index.failed):,} left out, {index.width:,} numbers per "
            f"{'token' if args.pool == 'none' else 'image'}: {args.out}"
        )
        if args.clip_retrieval:
            print(f"clip-retrieval: {index.export_clip_retrieval(Path(args.clip_retrieval))}")
