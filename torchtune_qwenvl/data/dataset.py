"""From a record number to a sample: read, parse, transform; what happens to a bad one is decided here and nowhere else."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SkippedSample:
    """Stands in a batch's list for a sample that was left out; never reaches the model.

    Attributes:
        index: number of the sample in its dataset, from 0.
        reason: the whole message: file, number, what was expected, what to do.
    """

    index: int
    reason: str
