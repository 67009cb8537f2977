"""Folders and files that are replaced whole, and what failures leave."""

import os
import shutil
from pathlib import Path

import pytest

from torchtune_qwenvl import durable


def test_a_replaced_folder(tmp_path: Path) -> None:
    target = tmp_path / "new/model"
    for content in ("one", "two"):
        with durable.replaced_folder(target) as work:
            (work / "file").write_text(content)
        assert (target / "file").read_text() == content
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert oct(target.stat().st_mode)[-3:] == oct(0o777 & ~durable._umask())[-3:]


def test_a_failure_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with durable.replaced_folder(target) as work:
        (work / "file").write_text("old")
    with pytest.raises(KeyError), durable.replaced_folder(target) as work:
        (work / "file").write_text("new")
        raise KeyError
    full = pytest.raises(ValueError, match=r"model cannot be written: No space left on device")
    with full, durable.replaced_folder(target) as work:
        raise OSError(28, os.strerror(28), str(work / "file"))
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    """The next export brings the old folder back before it replaces it."""
    target = tmp_path / "model"
    with durable.replaced_folder(target) as work:
        (work / "file").write_text("old")
    target.rename(tmp_path / ".model.abc.old")
    with pytest.raises(KeyError), durable.replaced_folder(target):
        assert (target / "file").read_text() == "old"
        raise KeyError
    assert (target / "file").read_text() == "old"


def test_a_file_is_written_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    durable.write_file(file, b"old")

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        with pytest.raises(ValueError, match=r"file cannot be written: No space left on device\. Make room"):
            durable.write_file(file, b"new")
    assert file.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("link", "nothing"):
        durable.remove(tmp_path / name)
    assert (tmp_path / "folder").is_dir()
    durable.remove(tmp_path / "folder")
    assert not any(tmp_path.iterdir())
    shutil.rmtree(tmp_path)
