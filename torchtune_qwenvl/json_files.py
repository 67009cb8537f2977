"""JSON files on disk. Every file of a checkpoint or adapter folder that is a JSON object is read here.

A broken file gives a ValueError with its path, the line and column, and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: the file is missing, empty, not UTF-8, not valid JSON, or holds no object.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    text = _read_text(path)
    if not text.strip():
        raise ValueError(f"{path}: empty; copy or download it again")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}; "
            "correct it there, or copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_json_if_there(path: Path) -> dict[str, Any] | None:
    """`read_json`, or None if there is no such file."""
    return read_json(path) if path.is_file() else None


def read_config(config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """The content of a config.json: given as it is, by its path or by its folder.

    Raises:
        ValueError: there is no such file, or it is broken.
    """
    if isinstance(config, Mapping):
        return config
    path = Path(config)
    path = path / CONFIG if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"no config.json at {path}: expected a checkpoint folder, as `tune download <repo>` makes it"
        )
    return read_json(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object in the style of the Hugging Face hub: indented by two spaces, UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8, byte {error.start}; copy or download it again") from error
