"""Published tokenizers, templates and processor files as checkpoint folders."""

import json
import shutil
from pathlib import Path

import pytest
import tiny

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl thinking")


def publish(folder: Path, family: str) -> Path:
    """A folder with everything that a family publishes, except weights."""
    shared = tiny.shared_data()
    shutil.copytree(shared / "published" / family, folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "qwen2_5_tokenizer" / name, folder)
    if not (folder / "tokenizer_config.json").is_file():
        tiny.write_tokenizer_config(folder, tiny.REAL_BASE, family)
    if (videos := tiny.FAMILIES[family].videos) is not None:
        images = json.loads((folder / "preprocessor_config.json").read_text())
        content = {**images, **videos}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published folder of Qwen2.5-VL, without weights."""
    return publish(tmp_path_factory.mktemp("published") / "qwen2_5_vl", "qwen2_5_vl")


@pytest.fixture(scope="session", params=FAMILIES)
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published folder of each family; Qwen3-VL also with the template of its Thinking checkpoints."""
    family, _, thinking = request.param.partition(" ")
    folder = publish(tmp_path_factory.mktemp("published") / request.param.replace(" ", "_"), family)
    if thinking:
        (folder / "chat_template.jinja").write_text(tiny.QWEN3_THINKING_TEMPLATE)
    return folder
