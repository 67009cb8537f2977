"""Draw a contact sheet: samples as the model sees them, with resized images and tokens."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.pictures.boxes import Mark, draw_boxes
from torchtune_qwenvl.pictures.cards import Card, draw_page
from torchtune_qwenvl.pictures.style import BLUE, GREEN, GREY, INK, MIST, PALE_GREEN
from torchtune_qwenvl.pictures.text import Span
from torchtune_qwenvl.transforms.boxes.reading import boxes_in, says_boxes
from torchtune_qwenvl.transforms.images.unpatch import images_of


def draw_sheet(
    samples: Sequence[tuple[str, Mapping[str, Any]]], transform: Any, total: int, path: Path
) -> None:
    """Write the sheet as PNG.

    Args:
        samples: (file and number, the transform's sample) of each.
        transform: the transform that made them.
        total: number of samples in the dataset.
        path: the PNG file to write.
    """
    title = [
        Span(f"{len(samples)} of {counted(total, 'sample')}", bold=True),
        Span("    trained on:", GREY),
        Span(" "),
        Span(" green ", back=PALE_GREEN),
    ]
    cards = [_card(sample, place, transform) for place, sample in samples]
    draw_page(title, cards, path)


def conversation(sample: Mapping[str, Any], transform: Any) -> list[Span]:
    """A sample's tokens as text: special tokens grey, visual tokens counted, trained tokens on green."""
    visual = {transform.image_token_id, transform.video_token_id}
    pairs = zip(sample["tokens"], sample["mask"], strict=True)
    spans: list[Span] = []
    for (masked, is_visual), run in groupby(pairs, key=lambda pair: (pair[1], pair[0] in visual)):
        tokens = [token for token, _ in run]
        if is_visual:
            spans.append(Span(f" {len(tokens):,} visual tokens ", BLUE, MIST))
        else:
            back = None if masked else PALE_GREEN
            spans += _with_special(transform.decode(tokens, False, False), transform, back)
    return spans


def _with_special(text: str, transform: Any, back: str | None) -> list[Span]:
    pieces = re.split("(" + "|".join(map(re.escape, transform.special_tokens)) + ")", text)
    return [
        Span(piece, GREY if piece in transform.special_tokens else INK, back) for piece in pieces if piece
    ]


def _with_boxes(
    images: Sequence[Image.Image], sample: Mapping[str, Any], transform: Any
) -> list[Image.Image]:
    """The images with the boxes that are trained on: the record's, or those that its text spells."""
    places = sample.get("boxes")
    if places is None and len(images) == 1:
        kept = [token for token, masked in zip(sample["tokens"], sample["mask"], strict=True) if not masked]
        text = transform.decode(kept, False, False)
        places = boxes_in(text, images[0], transform) if says_boxes(text) else None
    return [
        draw_boxes(image, [Mark(p.values, GREEN, p.label) for p in places or () if p.image == number])
        for number, image in enumerate(images)
    ]


def _card(sample: Mapping[str, Any], place: str, transform: Any) -> Card:
    vision = sample["encoder_input"]["vision"]
    cut = f", {sample['dropped_turns']} turns cut" if sample.get("dropped_turns") else ""
    head = Span(f"{place}: {len(sample['tokens']):,} tokens{cut}\n", GREY)
    images = images_of(vision["images"], vision["grid_thw"], transform)
    images = _with_boxes(images, sample, transform)
    return Card(images, [head, *conversation(sample, transform)])
