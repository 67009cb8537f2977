"""docs/guides/search.md does what it says: its commands and its Python run in order, on a tiny folder."""

import re
import shlex
from pathlib import Path

import pytest
import tiny

from torchtune_qwenvl.cli.main import main

PAGE = (Path(__file__).resolve().parents[2] / "docs/guides/search.md").read_text(encoding="utf-8")
PUBLISHED = "/tmp/Qwen3-VL-2B-Instruct"


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/, classes/, query.jpg and a checkpoint."""
    tiny.save_tiny_folder(tmp_path / "published", family="qwen3_vl")
    for number in range(8):
        for place in ("photos", "classes/cats" if number % 2 else "classes/dogs"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            tiny.photo(64, 96, seed=number).save(tmp_path / place / f"{number}.jpg")
    tiny.photo(64, 96, seed=3).save(tmp_path / "query.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs(working_folder: Path, capsys: pytest.CaptureFixture) -> None:
    names: dict = {}
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
    assert [language for language, _ in blocks].count("python") == 3
    for language, block in blocks:
        code = block.replace(PUBLISHED, str(working_folder / "published"))
        if language == "python":
            exec(compile(code, "docs/guides/search.md", "exec"), names)
        else:
            for line in code.splitlines():
                assert line.startswith("tune-qwenvl ")
                main([*shlex.split(line)[1:], *(["--workers", "0"] if " search " not in line else [])])
    printed = capsys.readouterr().out
    assert "1.0000  3.jpg" in printed and names["hits"][0].name == "3.jpg"
    assert "1.0000  3.jpg" in printed.split("numbers per token")[1]
    assert names["scores"].argmax() == 0 and str(names["result"]) in printed
    for file in ("hits.png", "layers.png", "clip/metadata/metadata_0.parquet", "tokens.index/meta.json"):
        assert (working_folder / file).is_file(), file
