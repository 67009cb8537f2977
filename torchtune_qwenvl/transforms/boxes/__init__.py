"""Boxes and points: from a record's coordinates to the text of each family's convention, and back.

convention: `BoxConvention`, the data of a family: the range of its coordinates and how it writes them.
places: boxes and points of an image, and the sizes of that image before and after the resize.
units: what a record's numbers mean: pixels, 0 .. 1 or 0 .. 1000.
writing: replaces the box parts of messages by text.
reading: finds boxes and points in an answer.
overlap: intersection over union, and the pairing of expected and found boxes.
"""

from torchtune_qwenvl.transforms.boxes.convention import AnswerForm, BoxConvention
from torchtune_qwenvl.transforms.boxes.overlap import iou, matched_ious
from torchtune_qwenvl.transforms.boxes.places import ImageSize, Place

__all__ = ["AnswerForm", "BoxConvention", "ImageSize", "Place", "iou", "matched_ious"]
