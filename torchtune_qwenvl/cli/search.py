"""`tune-qwenvl search`: the images of an index that are most like one image."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torchtune_qwenvl.cli.encoder_arguments import absolute, add_machine_arguments, load_pipeline

if TYPE_CHECKING:
    from PIL import Image

    from torchtune_qwenvl.vision.index import Hit, ImageIndex

EPILOG = """\
examples:
  tune-qwenvl search photos.index query.jpg
  tune-qwenvl search photos.index query.jpg -k 10 --sheet hits.png

It prints a line per hit: its cosine with the query, and its name (in an index of tokens, the best cosine of
each token of the query, their mean). The index says which encoder made it; give
--encoder if its folder has moved, and --root if the images have.
"""


class Search:
    """Prints hits, and draws them."""

    def __init__(self, subparsers) -> None:
        parser = subparsers.add_parser(
            "search",
            description="Find the images of an index that are most like an image.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("index", metavar="INDEX", help="a folder that `embed` has written")
        parser.add_argument("query", metavar="IMAGE", help="an image file")
        parser.add_argument("-k", type=int, default=10, metavar="N", help="hits; default: %(default)s")
        parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw the query and its hits")
        parser.add_argument("--encoder", metavar="DIR", help="default: the folder that the index names")
        parser.add_argument("--root", metavar="DIR", help="the folder of the images, if it has moved")
        parser.add_argument(
            "--backend", default="exact", help="exact, faiss or usearch; default: %(default)s"
        )
        add_machine_arguments(parser)
        parser.set_defaults(func=self._search)

    def _search(self, args: argparse.Namespace) -> None:
        from torchtune_qwenvl.vision.index import ImageIndex, check_image

        index = ImageIndex.load(args.index, root=args.root, backend=args.backend)
        check_image(args.query)  # a text is refused before the encoder is loaded
        settings = dict(index.store.meta.encoder)
        if args.encoder:
            settings["folder"] = absolute(args.encoder)
        if "folder" not in settings:
            raise ValueError(f"{args.index} does not say which encoder made it: give --encoder DIR")
        hits = index.search(args.query, load_pipeline(settings, args.device), args.k)
        for hit in hits:
            print(f"{hit.score:.4f}  {hit.name}")
        if not index.store.meta.complete:
            print(f"{args.index} is not complete: run `embed` again to finish it")
        if args.sheet:
            draw_sheet(args.query, hits, index, args.sheet)
            print(f"sheet: {args.sheet}")


def draw_sheet(query: str, hits: "Sequence[Hit]", index: "ImageIndex", path: Path) -> None:
    """Draw a query and its hits, with their scores."""
    from torchtune_qwenvl.pictures.tiles import Tile, draw_tiles

    tiles = [Tile(picture(Path(query)), "query", Path(query).name, marked=True)]
    tiles += [Tile(picture(hit.path), f"{n}   {hit.score:.3f}", hit.name) for n, hit in enumerate(hits, 1)]
    draw_tiles(f"{len(hits)} nearest of {len(index):,} images", tiles, path)


def picture(path: Path) -> "Image.Image | None":
    """An image as the encoder's decoder gives it; None if the file is gone."""
    from PIL import Image

    from torchtune_qwenvl.transforms.errors import BadSample
    from torchtune_qwenvl.transforms.images.decode import decode_image

    try:
        return Image.fromarray(decode_image(path).permute(1, 2, 0).numpy())
    except BadSample:
        return None
