"""JSON files on disk. Every file of a checkpoint or adapter folder that is a JSON object is read here.

A broken file gives a ValueError with its path, the line and column, and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    raw = path.read_bytes()
    if not raw.strip():
        raise ValueError(f"{path}: empty; copy or download it again")
    try:
        return parse_json(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_json(raw: bytes) -> dict[str, Any]:
    """The JSON object that `raw` spells.

    Raises:
        ValueError: not UTF-8, not valid JSON, no object, an object with a key twice, or nested too deep.
    """
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_twins)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8, byte {error.start}; copy or download it again") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON, line {error.lineno} column {error.colno}: {error.msg}; "
            "correct it there, or copy or download it again"
        ) from error
    except RecursionError as error:
        raise ValueError("nested deeper than any such file; copy or download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
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
    hint = hint_at_checkpoint(path)
    path = path / CONFIG if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"no config.json at {path}: expected a checkpoint folder, as `tune download <repo>` makes it"
            f"{hint}"
        )
    return read_json(path)


def hint_at_checkpoint(folder: Path) -> str:
    """Where the checkpoint is, if a folder is that of a run or of a saved step; else empty."""
    results = [folder / name for name in ("model", "adapter") if (folder / name).is_dir()]
    if (folder / "run.json").is_file():
        return f". This is a saved step: `tune-qwenvl export {folder}` writes a checkpoint from it"
    if any((result / name).is_file() for result in results for name in (CONFIG, "adapter_config.json")):
        return f". This is the folder of a run: take {' or '.join(map(str, results))}"
    return ""


@contextmanager
def naming(folder: str | Path, *beginnings: str) -> Iterator[None]:
    """ValueErrors about files of a folder get its path in front; others are passed on.

    Args:
        folder: the folder that is read in the block.
        *beginnings: how the errors begin that are about its files.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(beginnings):
            raise
        joint = "/" if str(error).startswith(CONFIG) else ": "
        raise ValueError(f"{folder}{joint}{error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object in the style of the Hugging Face hub: indented by two spaces, UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a ValueError if a key is there twice, since only one of the two would count."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twin!a} is there twice in one object: delete one of the two")
    return found
