"""Search among images: an index on disk, exact or approximate, and scores of images that keep all tokens."""

from torchtune_qwenvl.vision.index.hits import Hit
from torchtune_qwenvl.vision.index.image_index import ImageIndex
from torchtune_qwenvl.vision.index.late_interaction import late_interaction
from torchtune_qwenvl.vision.index.queries import check_image
from torchtune_qwenvl.vision.index.token_pooling import pool_by_factor

__all__ = ["Hit", "ImageIndex", "check_image", "late_interaction", "pool_by_factor"]
