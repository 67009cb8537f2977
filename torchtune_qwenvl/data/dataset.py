"""What happens to a bad sample is decided here and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from torchtune_qwenvl.data.sizes import sample_size
from torchtune_qwenvl.transforms.errors import BadSample, SampleTooLong, check_trainable
from torchtune_qwenvl.transforms.size import SampleSize

POLICIES = ("raise", "skip")
FIX_UNTRAINED = "add or unmask an answer, raise max_seq_len, or set on_bad_sample: skip"


@dataclass(frozen=True)
class SkippedSample:
    """Stands in a batch's list for a sample that was left out; never reaches the model.

    Attributes:
        index: number of the sample in its dataset, from 0.
        reason: the whole message: file, number, what was expected, what to do.
    """

    index: int
    reason: str


class BadRecord(BadSample):
    """A bad sample whose message names its file and number; no outer dataset adds them again."""


class Guarded(Dataset):
    """A map-style dataset whose bad samples carry their place and follow one policy.

    Wraps any dataset of samples of our transforms, torchtune's ``SFTDataset`` included. Where the dataset has
    a method ``where(index)`` (ours: file and record number), it names the place in the message.

    A sample longer than ``max_seq_len`` that the transform gives up (:class:`SampleTooLong`) is no error but
    the stated truncation policy at work: it becomes a :class:`SkippedSample` under both policies.

    Args:
        dataset: map-style dataset.
        on_bad_sample: "raise" stops at the first bad sample; "skip" returns a :class:`SkippedSample` for it,
            which our loader leaves out, logs and counts.

    Raises:
        ValueError: an unknown policy.
    """

    def __init__(self, dataset: Dataset, on_bad_sample: str = "raise") -> None:
        if on_bad_sample not in POLICIES:
            raise ValueError(f"on_bad_sample: expected one of {', '.join(POLICIES)}, got {on_bad_sample!r}")
        self.dataset, self.on_bad_sample = dataset, on_bad_sample

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Mapping[str, Any] | SkippedSample:
        """The sample by its number (of a stream, by its item), or a :class:`SkippedSample`.

        Raises:
            BadRecord: a bad sample, under "raise".
        """
        try:
            sample = self.dataset[index]
            if not isinstance(sample, SkippedSample) and (mask := sample.get("mask")) is not None:
                check_trainable(mask, fix=FIX_UNTRAINED)
            return sample
        # torchtune's own datasets answer a broken record or image file with these.
        except (ValueError, OSError) as error:
            reason = self._located(error, index)
            if isinstance(error, SampleTooLong) or self.on_bad_sample == "skip":
                return SkippedSample(getattr(index, "number", index), reason)
            raise BadRecord(reason) from error

    def size(self, index: int) -> SampleSize:
        """Size of the sample; (0, 0) for a bad one, which is dealt with when it is read."""
        return sample_size(self.dataset, index)

    def fingerprint(self) -> str | None:
        """The dataset's own, see `length_cache`; None where it has none."""
        return self.dataset.fingerprint() if hasattr(self.dataset, "fingerprint") else None

    def where(self, index: int) -> str:
        """Where the sample comes from, for messages."""
        if hasattr(self.dataset, "where"):
            return self.dataset.where(index)
        return f"sample {index} (from 0) of the dataset"

    def _located(self, error: Exception, index: int) -> str:
        return str(error) if isinstance(error, BadRecord) else f"{self.where(index)}: {error}"
