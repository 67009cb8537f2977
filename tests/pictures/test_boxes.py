"""Boxes are drawn where they are, in their colours."""

import numpy as np
from PIL import Image

from torchtune_qwenvl.pictures.boxes import Mark, draw_boxes
from torchtune_qwenvl.pictures.style import GREEN, ORANGE


def is_drawn(image: Image.Image, colour: str) -> np.ndarray:
    return (np.asarray(image) == list(bytes.fromhex(colour[1:]))).all(-1)


def test_boxes_lie_on_their_pixels() -> None:
    image = Image.new("RGB", (800, 600))
    drawn = draw_boxes(image, [Mark((100, 50, 300, 200), GREEN), Mark((400, 300, 800, 600), ORANGE)])
    for colour, box in ((GREEN, (100, 50, 300, 200)), (ORANGE, (400, 300, 800, 600))):
        places = np.argwhere(is_drawn(drawn, colour))
        assert (*places.min(0)[::-1], *(places.max(0)[::-1] + 1)) == box
    assert not np.asarray(image).any()  # the original is untouched


def test_small_images_are_enlarged_and_the_rest_is_drawn_too() -> None:
    image = Image.new("L", (28, 56))
    marks = [Mark((2, 20, 10, 30), GREEN, "a label longer than the image is wide 羊"), Mark((20, 40), ORANGE)]
    drawn = draw_boxes(image, marks)
    assert drawn.size == (28 * 7, 56 * 7)
    places = np.argwhere(is_drawn(drawn, GREEN))
    assert places.max(0)[0] + 1 == 30 * 7 and is_drawn(drawn, ORANGE).any()
    ring = np.argwhere(is_drawn(drawn, ORANGE)).mean(0)
    assert abs(ring - [40 * 7, 20 * 7]).max() < 3


def test_an_image_without_boxes_is_itself() -> None:
    image = Image.new("RGB", (8, 8))
    assert draw_boxes(image, []) is image
