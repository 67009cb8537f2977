"""An index in clip-retrieval's layout: its `inference` writes it, its `index` and `back` read it.

img_emb/img_emb_0.npy           float16 [rows, width], each row of length 1
metadata/metadata_0.parquet     a column image_path
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchtune_qwenvl.vision.index.exact import unit_blocks
from torchtune_qwenvl.vision.index.store import Store


def export_clip_retrieval(store: Store, folder: Path, root: Path) -> Path:
    """Write the vectors and paths of an index; returns the folder.

    Args:
        store: an index with at least one vector.
        folder: where to; it must not hold an export already.
        root: the data folder: clip-retrieval wants whole paths.

    Raises:
        ValueError: pyarrow is not installed, or there is something in `folder`.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("clip-retrieval's layout needs pyarrow: pip install pyarrow") from error
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: choose another folder")
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shape = (store.meta.rows, store.meta.width or 0)
    vectors = np.lib.format.open_memmap(folder / "img_emb/img_emb_0.npy", "w+", np.float16, shape)
    for first, block in unit_blocks(store):
        vectors[first : first + len(block)] = block.numpy()
    vectors.flush()
    paths = pyarrow.table({"image_path": [str(root / name) for name in store.names()]})
    pyarrow.parquet.write_table(paths, folder / "metadata/metadata_0.parquet")
    return folder
