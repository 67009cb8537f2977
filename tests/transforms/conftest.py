"""The published Qwen2.5-VL tokenizer, template and processor files as one checkpoint folder."""

import shutil
from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "qwen2_5_vl"
    shared = tiny.shared_data()
    shutil.copytree(shared / "published" / "qwen2_5_vl", folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "qwen2_5_tokenizer" / name, folder)
    return folder
