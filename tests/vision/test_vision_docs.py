"""docs/guides/vision.md does what it says: its Python runs in order, on a tiny folder."""

import re
from pathlib import Path

import pytest
import tiny

PAGE = (Path(__file__).resolve().parents[2] / "docs/guides/vision.md").read_text(encoding="utf-8")
PUBLISHED = "/tmp/Qwen3-VL-2B-Instruct"


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source = tiny.save_tiny_folder(tmp_path / "published", family="qwen3_vl")
    tiny.photo(64, 96, seed=1).save(tmp_path / "cat.jpg")
    tiny.photo(96, 64, seed=2).save(tmp_path / "dog.jpg")
    (tmp_path / "torn.jpg").write_bytes(b"not a picture")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block.replace(PUBLISHED, str(source)), "docs/guides/vision.md", "exec"), names)
    assert "torn.jpg" in capsys.readouterr().out
    assert names["logits"].shape == (2, 2)
    assert (tmp_path / "cat_tokens.png").is_file() and (tmp_path / "encoder" / "config.json").is_file()
    whole = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert whole == sorted(path.name for path in source.iterdir())
