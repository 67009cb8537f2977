"""run.json, which is written last and says what a `step_N/` folder has to hold.

{"format": 3, "run": "5f0c…", "world_size": 2, "shards": 2, "device": "cuda", "progress": {"step": 40, …},
 "files": {"rank_0.pt": {"bytes": …, "blake2b": …}, …}, "settings": {…}, "content": {…}, "digest": …}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torchtune_qwenvl.json_files import read_json
from torchtune_qwenvl.training.resume.digests import check_file, new_digest
from torchtune_qwenvl.training.resume.progress import Progress

META = "run.json"
ASIDE = ".aside"  # ends the name of a folder that a run which went another way has left
FORMAT = 3


@dataclass(frozen=True)
class Meta:
    """The content of run.json.

    Attributes:
        run: the run's id, the same in all its folders.
        world_size: number of processes, each with a file of its own.
        shards: how many of them share a copy of the model; the files of the first so many hold its shards.
        device: "cuda" or "cpu".
        progress: how far the run had come, without the place in the data, which each rank keeps.
        files: name -> size and digest of each rank's file.
        settings: every config key of the run, by its dotted name.
        content: fingerprint of each file that the run reads, by the config key that names it.
        samples: number of samples of those of which it is known, for messages.
    """

    run: str
    world_size: int
    shards: int
    device: str
    progress: Progress
    files: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The bytes of run.json."""
        progress = {key: value for key, value in vars(self.progress).items() if key != "data"}
        body = {"format": FORMAT, **vars(self), "progress": progress}
        return json.dumps({**body, "digest": _digest(body)}, indent=2).encode()


def rank_file(rank: int) -> str:
    """The name of a rank's file in a `step_N/` folder."""
    return f"rank_{rank}.pt"


def read_meta(folder: Path) -> Meta:
    """The content of a folder's run.json.

    Raises:
        ValueError: the file is missing, damaged, of an earlier version, or of another step than the folder's
            name says.
    """
    file = folder / META
    if not file.is_file():
        raise ValueError(f"{file}: missing")
    body = read_json(file)
    digest = body.pop("digest", None)
    if "world_size" in body and digest in (None, _digest(body)) and body.get("format", 0) < FORMAT:
        raise ValueError(
            f"{file}: written by an earlier version, whose places in the data are others: finish that run "
            "with the version that it began with"
        )
    if digest != _digest(body) or body.pop("format") != FORMAT:
        raise ValueError(f"{file}: damaged: its digest differs")
    progress = Progress(**body.pop("progress"))
    if folder.name.removesuffix(ASIDE) != f"step_{progress.step}":
        raise ValueError(f"{file}: of step {progress.step}: the folder has been renamed, or the file copied")
    return Meta(progress=progress, **{name: body[name] for name in _names() if name in body})


def check_files(folder: Path, meta: Meta, ranks: range | None = None) -> None:
    """Raise a ValueError that names the first of the ranks' files that is not the one that was written.

    Args:
        folder: `step_N/`.
        meta: its run.json.
        ranks: whose files; None: all.
    """
    for rank in ranks or range(meta.world_size):
        check_file(folder / rank_file(rank), meta.files[rank_file(rank)])


def _names() -> list[str]:
    return [entry.name for entry in fields(Meta) if entry.name != "progress"]


def _digest(body: Mapping[str, Any]) -> str:
    digest = new_digest()
    digest.update(json.dumps(body, sort_keys=True).encode())
    return digest.hexdigest()
