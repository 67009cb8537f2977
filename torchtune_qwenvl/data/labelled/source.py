"""`dataset.source=photos/`: what a source is, by looking at it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torchtune_qwenvl.arguments import nearest, passes_on
from torchtune_qwenvl.data.labelled.dataset import LabelledImages
from torchtune_qwenvl.data.labelled.files import TABLES, image_folder, image_table
from torchtune_qwenvl.data.labelled.hub import hub_images


@passes_on(lambda: (image_table, image_folder, hub_images))
def labelled_images(source: str, **options: Any) -> LabelledImages:
    """Labelled images from a table, a folder of folders, or a data set of the `datasets` library.

    Args:
        source: a .csv, .tsv or .jsonl file (`image_table`), a folder with a subfolder per class
            (`image_folder`), a folder of `datasets.save_to_disk`, or a name (`hub_images`).
        **options: arguments of that function.

    Raises:
        ValueError: see these functions; an argument that the function does not have.
    """
    path = Path(source)
    is_saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if path.suffix in TABLES:
        return _call(image_table, source, options)
    if path.is_dir() and not is_saved:
        return _call(image_folder, source, options)
    return hub_images(source, **options)


def _call(read: Any, source: str, options: dict[str, Any]) -> LabelledImages:
    known = inspect.signature(read).parameters
    for name in options:
        if name not in known:
            raise ValueError(
                f"{source} is read by {read.__name__}, which has no '{name}'.{nearest(name, known)}"
            )
    return read(source, **options)
