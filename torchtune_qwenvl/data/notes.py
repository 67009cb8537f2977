"""What is odd about records, or not read of them, said once: at the start of a run, and when it turns up."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.samples import Samples
from torchtune_qwenvl.transforms.errors import locate

SHOWN = 5  # bad samples that an error names
_NOT_READ = re.compile(r"(the (?:column|key)[^']*) '(.*)' is not read")


@dataclass
class Notes:
    """Notes of several samples.

    Attributes:
        places: note -> the place of the first sample that has it.
        counts: note -> how many samples have it.
        looked_at: number of samples.
        bad: the errors of those that stop a run, each with its place.
    """

    places: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    looked_at: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, notes: Iterable[str], place: str) -> None:
        """Add the notes of one sample."""
        self.looked_at += 1
        for note in notes:
            self.places.setdefault(note, place)
            self.counts[note] = self.counts.get(note, 0) + 1

    def check(self) -> None:
        """Raise a ValueError if a run would stop at one of these samples."""
        if not self.bad:
            return
        more = [f"… and {len(self.bad) - SHOWN:,} more"] if len(self.bad) > SHOWN else []
        count = f"{len(self.bad):,} of {counted(self.looked_at, 'sample')} looked at"
        raise ValueError(
            "\n  ".join([f"bad samples, {count}, before any training:", *self.bad[:SHOWN], *more])
            + "\nCorrect them, list all by `tune-qwenvl check`, or leave them out with on_bad_sample=skip."
        )

    def lines(self) -> list[str]:
        """The notes as text: what is not read by its names, everything else with a count and a place."""
        unread: dict[str, list[str]] = {}
        others = []
        for note, count in self.counts.items():
            if match := _NOT_READ.fullmatch(note):
                unread.setdefault(match[1], []).append(match[2])
            else:
                others.append(
                    f"{note}: {count:,} of {counted(self.looked_at, 'sample')}, first {self.places[note]}"
                )
        lines = [f"{what} {', '.join(names)}: not read" for what, names in unread.items()]
        return lines + others


def first_notes(samples: Samples, most: int = 1000, seconds: float = 2.0) -> Notes:
    """The notes of samples spread over a dataset, and which are bad; only records are read, no images.

    Args:
        samples: map-style.
        most: how many samples to look at.
        seconds: when to stop looking.
    """
    n, found, end = len(samples), Notes(), time.monotonic() + seconds  # type: ignore[arg-type]
    for number in range(min(n, most)):
        if time.monotonic() > end:
            break
        key = number * n // min(n, most)
        try:
            found.add(samples.notes(key), samples.where(key))
        except Exception as error:
            found.add([], samples.where(key))
            found.bad.append(str(locate(error, partial(samples.where, key))))
    return found


def new_notes(notes: Mapping[str, str], known: set[str]) -> list[str]:
    """Lines for the notes (note -> place) that are not known yet; they are known afterwards."""
    new = [note for note in notes if note not in known]
    known.update(new)
    return [f"{notes[note]}: {note}" for note in new]
