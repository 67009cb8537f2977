"""Reads samples in a data worker, and reports for each key what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset

from torchtune_qwenvl.data.guarded import Guarded
from torchtune_qwenvl.data.samples import Sample, Samples
from torchtune_qwenvl.transforms.errors import BadSample, SampleTooLong


@dataclass(frozen=True)
class Drawn:
    """What came of a key: a sample, one that was left out, or the error that stops the run.

    Attributes:
        outcome: errors travel as values, so that the main process raises them without a worker's traceback.
        member: which dataset of a mix it belongs to.
        where: file and number, for messages.
        notes: what is odd about its record, each with the place of the sample.
    """

    outcome: Sample | ValueError
    member: int = 0
    where: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


class Reported(Dataset):
    """Reads a dataset's samples and reports what came of each."""

    def __init__(self, samples: Samples, on_bad_sample: str, on_too_long: str = "raise") -> None:
        self.guarded = Guarded(samples, on_bad_sample, on_too_long)

    def __getitem__(self, key: Any) -> Drawn:
        if isinstance(key, ValueError):  # the stream broke off here
            return Drawn(key)
        try:
            sample = self.guarded[key]
        except BadSample as error:
            return Drawn(_advised(error), self.guarded.member(key))
        wrong = self.guarded.check(key, sample) if isinstance(sample, Mapping) else None
        outcome = sample if wrong is None else BadSample(wrong)
        where, notes = self.guarded.where(key), {}
        if isinstance(sample, Mapping) and sample.get("notes"):
            notes = dict.fromkeys(sample["notes"], where)
        return Drawn(outcome, self.guarded.member(key), where, notes)


def _advised(error: BadSample) -> BadSample:
    """An error that stops a run, with the key that would leave the sample out."""
    key = "on_too_long" if isinstance(error, SampleTooLong) else "on_bad_sample"
    advised = type(error)(f"{error}; {key}=skip leaves such samples out")
    advised.located = True
    return advised
