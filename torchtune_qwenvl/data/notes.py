"""What is odd about records, or not read of them, said once: at the start of a run, and when it turns up."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torchtune_qwenvl.data.samples import Samples

_NOT_READ = re.compile(r"(the (?:column|key)[^']*) '(.*)' is not read")


@dataclass
class Notes:
    """Notes of several samples.

    Attributes:
        places: note -> the place of the first sample that has it.
        counts: note -> how many samples have it.
        looked_at: number of samples.
    """

    places: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    looked_at: int = 0

    def add(self, notes: Iterable[str], place: str) -> None:
        """Add the notes of one sample."""
        self.looked_at += 1
        for note in notes:
            self.places.setdefault(note, place)
            self.counts[note] = self.counts.get(note, 0) + 1

    def lines(self) -> list[str]:
        """The notes as text: what is not read by its names, everything else with a count and a place."""
        unread: dict[str, list[str]] = {}
        others = []
        for note, count in self.counts.items():
            if match := _NOT_READ.fullmatch(note):
                unread.setdefault(match[1], []).append(match[2])
            else:
                others.append(f"{note}: {count:,} of {self.looked_at:,} samples, first {self.places[note]}")
        lines = [f"{what} {', '.join(names)}: not read" for what, names in unread.items()]
        return lines + others


def first_notes(samples: Samples, most: int = 1000, seconds: float = 2.0) -> Notes:
    """The notes of samples spread over a dataset; only records are read, no images.

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
            found.add([f"a bad record ({type(error).__name__}: {error})"[:300]], samples.where(key))
    return found


def new_notes(notes: Mapping[str, str], known: set[str]) -> list[str]:
    """Lines for the notes (note -> place) that are not known yet; they are known afterwards."""
    new = [note for note in notes if note not in known]
    known.update(new)
    return [f"{notes[note]}: {note}" for note in new]
