"""Broken JSON files: whoever reads one names the file, the place and what to do."""

import re
import shutil
from pathlib import Path

import pytest

from torchtune_qwenvl import load_model, load_transform, load_vision_encoder
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.json_files import read_config
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.models.qwen2_5_vl import Qwen2_5_VLTransform, qwen2_5_vl_from_config

READERS = [load_model, load_vision_encoder, load_transform, get_family, qwen2_5_vl_from_config]
BROKEN = [
    (b'{\n  "model_type": "qwen2_5_vl",\n}', r"not valid JSON, line \d column \d.*copy or download it again"),
    (b"[1]", "expected a JSON object, got list"),
    (b'{"model_type": "\xff"}', "not UTF-8, byte 16.*copy or download it again"),
    (b"", "empty.*copy or download it again"),
]


@pytest.fixture
def folder(tmp_path, tiny_folder):
    return shutil.copytree(tiny_folder, tmp_path / "broken")


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize(("content", "message"), BROKEN, ids=["syntax", "list", "bytes", "empty"])
def test_a_broken_config_is_named_with_the_place(folder, read, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)broken/config\.json: {message}"):
        read(folder)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "chat_template.json"])
def test_so_is_every_other_file_of_a_folder(folder, file):
    (folder / file).write_text('{"a": 1,,}')
    with pytest.raises(ValueError, match=rf"broken/{file}: not valid JSON, line 1 column 9"):
        load_transform(folder)


def test_and_a_template_in_a_file_of_its_own(folder):
    (folder / "chat_template.jinja").write_bytes(b"{{ 'a\xff' }}")
    with pytest.raises(ValueError, match=r"broken/chat_template.jinja: not UTF-8, byte 5"):
        load_transform(folder)


def test_a_key_that_is_there_twice_is_named(folder):
    text = (folder / "config.json").read_text().rstrip()
    (folder / "config.json").write_text(text[:-1] + ', "hidden_size": 128}')
    with pytest.raises(ValueError, match=r"broken/config.json: the key 'hidden_size' is there twice"):
        load_model(folder)


def test_and_a_file_of_added_tokens(folder):
    vocab = [folder / name for name in ("vocab.json", "merges.txt")]
    (folder / "tokens.json").write_text("{")
    for path, message in ((folder / "tokens.json", "not valid JSON"), (folder / "gone.json", "no such file")):
        with pytest.raises(ValueError, match=rf"{path}: {message}"):
            Qwen2_5_VLTransform(*vocab, special_tokens_path=path)


def test_folders_of_runs_say_where_the_checkpoint_is(tmp_path: Path) -> None:
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/model/config.json").write_text("{}")
    (tmp_path / "run/step_5").mkdir()
    (tmp_path / "run/step_5/run.json").write_text("{}")
    for folder, hint in (
        ("run", f"This is the folder of a run: take {tmp_path}/run/model"),
        ("run/step_5", f"This is a saved step: `tune-qwenvl export {tmp_path}/run/step_5` writes"),
    ):
        for read in (read_config, CheckpointFolder):
            with pytest.raises(ValueError, match=re.escape(hint)):
                read(tmp_path / folder)
