"""Boxes and points of a record: `<bbox>` and `<ref-object>` in its text, or a list of objects to be found.

    ms-swift      {"messages": [… "Find <ref-object>" …, … "<bbox>" …], "images": ["a.jpg"],
                   "objects": {"ref": ["the sheep"], "bbox": [[10, 20, 30, 40]]}}
    COCO, hub     {"image": "a.jpg", "objects": {"bbox": [[10, 20, 20, 20]], "category": ["sheep"]}}
    list          {…, "objects": [{"label": "sheep", "bbox": [10, 20, 30, 40]}, …]}
    typed part    {"type": "box", "box": [10, 20, 30, 40]}, {"type": "point", "point": [10, 20]}

Coordinates belong to the image as displayed. `transforms/boxes` writes them as the model's family does. An
answer that is nothing but boxes becomes the family's whole answer, such as a list in JSON; anywhere else a
tag becomes the coordinates alone.

ms-swift's fields (its docs, "Custom dataset", Grounding): `bbox` [x1, y1, x2, y2] or [x, y]; `bbox_type`
"real" (pixels) or "norm1", here also "norm1000"; `image_id`, the number of each box's image, default 0.
"""

from torchtune_qwenvl.data.records.boxes.fields import OBJECTS
from torchtune_qwenvl.data.records.boxes.parts import parse_box_part
from torchtune_qwenvl.data.records.boxes.reader import BoxReader

__all__ = ["OBJECTS", "BoxReader", "parse_box_part"]
