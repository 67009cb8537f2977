"""The only place that decides what happens to a bad sample: raise its error, or skip it."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from torchtune_qwenvl.data.samples import Sample, Samples, SkippedSample, as_samples, sample_size
from torchtune_qwenvl.transforms.errors import SampleTooLong, check_trainable, locate
from torchtune_qwenvl.transforms.size import SampleSize

POLICIES = ("raise", "skip")
FIX_UNTRAINED = "add or unmask an answer, or raise max_seq_len"


class Guarded(Samples):
    """A dataset whose bad samples name their place and follow one policy.

    Wraps any dataset of samples of our transforms, torchtune's ``SFTDataset`` included. If the dataset has a
    method ``where(index)`` (ours name file and record), messages use it.

    Every exception counts: one that is not a ValueError or OSError was not foreseen, and its message also
    says where in the code it was raised.

    Args:
        dataset: map-style dataset, or a `Streamed` one.
        on_bad_sample: "raise" stops at the first bad sample; "skip" returns a :class:`SkippedSample` for it,
            which our loader leaves out, logs and counts.
        on_too_long: the same for a sound sample that is longer than ``max_seq_len`` even after truncation
            (:class:`SampleTooLong`).

    Raises:
        ValueError: an unknown policy.
    """

    def __init__(self, dataset: Dataset, on_bad_sample: str = "raise", on_too_long: str = "raise") -> None:
        policies = {"on_bad_sample": on_bad_sample, "on_too_long": on_too_long}
        for name, policy in policies.items():
            if policy not in POLICIES:
                raise ValueError(f"{name}: expected one of {', '.join(POLICIES)}, got {policy!r}")
        self.dataset, self.on_bad_sample, self.on_too_long = as_samples(dataset), on_bad_sample, on_too_long

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Sample:
        """The sample by its number (of a stream, by its item), or a :class:`SkippedSample`.

        Raises:
            BadSample: under "raise", with the sample's place in front.
        """
        try:
            sample = self.dataset[key]
            if not isinstance(sample, SkippedSample) and (mask := sample.get("mask")) is not None:
                check_trainable(mask, fix=FIX_UNTRAINED)
            return sample
        except Exception as error:
            located = locate(error, lambda: self.where(key))
            policy = self.on_too_long if isinstance(located, SampleTooLong) else self.on_bad_sample
            if policy == "skip":
                return SkippedSample(getattr(key, "number", key), str(located))
            if located is error:
                raise
            raise located from error

    def size(self, key: Any) -> SampleSize:
        """Tokens and patches; (0, 0) for a bad sample, which is dealt with when it is read."""
        return sample_size(self.dataset, key)

    def fingerprint(self) -> str | None:
        return self.dataset.fingerprint()

    def where(self, key: Any) -> str:
        return self.dataset.where(key)

    def member(self, key: Any) -> int:
        return self.dataset.member(key)

    def notes(self, key: Any) -> tuple[str, ...]:
        """What is odd about the record; under "skip", also that it is bad."""
        try:
            return self.dataset.notes(key)
        except Exception as error:
            if self.on_bad_sample == "raise":
                raise
            return (f"a bad record ({type(error).__name__}: {error})"[:300],)

    def check(self, key: Any, sample: Mapping[str, Any]) -> str | None:
        return self.dataset.check(key, sample)
