"""A disk that loses what was not written to it: records what happens to files, and replays a power cut.

After an fsync of a file its content is safe, after an fsync of a folder its entries are. A replay builds what
the next start finds, in one of three ways in which file systems behave:

    "synced"     nothing but what was safe
    "journal"    all renames and entries made it, and of files that were not safe not a byte
    "random"     renames and entries up to some moment made it, and some contents that were not safe

Operations of Python code are seen by audit events, fsync by a wrapper; contents are read between them.
"""

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODES = ("synced", "journal", "random")
Entries = dict[str, int]  # name -> number of the file or folder


@dataclass
class Moment:
    """Folders and files by number, as programs see them and as the disk holds them."""

    entries: dict[int, Entries]
    contents: dict[int, bytes]
    safe_entries: dict[int, Entries]
    safe_contents: dict[int, bytes]
    synced_at: dict[int, int]  # the moment at which a folder was last fsynced


class Disk:
    """Everything below a folder at each moment: before each operation, and at the end."""

    def __init__(self, root: Path) -> None:
        self.root, self.moments = root, list[Moment]()
        self._open: dict[int, int] = {}
        entries, contents = self._look()
        self._safe_entries, self._safe_contents = dict(entries), dict(contents)
        self._synced_at: dict[int, int] = {}
        self.take()

    def take(self) -> None:
        """Note how everything is now."""
        entries, contents = self._look()
        safe = (dict(self._safe_entries), dict(self._safe_contents), dict(self._synced_at))
        self.moments.append(Moment(entries, contents, *safe))

    def synced(self, handle: int) -> None:
        """A file or folder has been fsynced."""
        number = os.fstat(handle).st_ino
        entries, contents = self._look()
        if number in entries:
            self._safe_entries[number] = entries[number]
            self._synced_at[number] = len(self.moments)
        elif number in contents:
            self._safe_contents[number] = contents[number]
        self.take()

    def close(self) -> None:
        """Give numbers of removed files back."""
        for handle in self._open.values():
            os.close(handle)

    def _look(self) -> tuple[dict[int, Entries], dict[int, bytes]]:
        entries: dict[int, Entries] = {}
        contents: dict[int, bytes] = {}
        for inner, folders, files in os.walk(self.root):
            numbers = {name: self._number(os.path.join(inner, name)) for name in [*folders, *files]}
            entries[self._number(inner)] = numbers
            contents |= {numbers[name]: Path(inner, name).read_bytes() for name in files}
        return entries, contents

    def _number(self, path: str) -> int:
        """A number that no other file gets: it is kept open."""
        number = os.stat(path).st_ino
        if number not in self._open:
            self._open[number] = os.open(path, os.O_RDONLY)
        return number

    def after_cut(self, at: int, mode: str, out: Path, chance: random.Random) -> Path:
        """Write to `out` what is left if the power goes at moment `at`."""
        shutil.rmtree(out, ignore_errors=True)
        until = {"synced": -1, "journal": at, "random": chance.randint(0, at)}[mode]
        moment = self.moments[at]

        def write(number: int, path: Path) -> None:
            path.mkdir()
            entries = moment.safe_entries.get(number, {})
            if until >= moment.synced_at.get(number, 0):
                entries = self.moments[until].entries.get(number, entries)
            for name, inner in entries.items():
                if inner in moment.safe_entries or any(
                    inner in m.entries for m in (moment, self.moments[until])
                ):
                    write(inner, path / name)
                    continue
                content = moment.safe_contents.get(inner, b"")
                if mode == "random" and chance.random() < 0.5:
                    content = moment.contents.get(inner, content)
                (path / name).write_bytes(content)

        write(os.stat(self.root).st_ino, out)
        return out


@contextmanager
def recorded(root: Path) -> Iterator[Disk]:
    """Record what happens below `root` inside."""
    disk, fsync = Disk(root), os.fsync
    state = {"on": True, "busy": False}

    def quietly(act: Callable[[], None]) -> None:
        if state["on"] and not state["busy"]:
            state["busy"] = True
            act()
            state["busy"] = False

    def audit(event: str, args: tuple) -> None:
        if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            quietly(disk.take)

    def synced(handle: int) -> None:
        fsync(handle)
        quietly(lambda: disk.synced(handle))

    sys.addaudithook(audit)
    os.fsync = synced
    try:
        yield disk
    finally:
        os.fsync, state["on"] = fsync, False
        disk.take()
        disk.close()
