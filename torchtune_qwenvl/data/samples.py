"""What this package asks of a dataset (`Samples`), and the one place where any other dataset is wrapped.

    ours                                Samples
    torch's ConcatDataset               JoinedSamples     each part wrapped
    any other map-style dataset         ForeignSamples    its own where, size and fingerprint if it has them

Whoever takes a dataset from outside calls `as_samples` first. Iterable datasets are wrapped by
`data/streams/dataset.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.fingerprint import Hasher
from torch.utils.data import ConcatDataset, Dataset

from torchtune_qwenvl.data.joined import Joined
from torchtune_qwenvl.transforms.size import SampleSize


@dataclass(frozen=True)
class Item:
    """A record of a stream on its way to the process that turns it into a sample.

    Attributes:
        record: as the source gave it; a line of JSON is still bytes.
        number: of the record in the share of its process, from 0.
        where: file and line, for messages.
        folder: the folder that relative image paths start from.
        member: which dataset of a mix it belongs to.
    """

    record: Any
    number: int
    where: str
    folder: Path | None = None
    member: int = 0


@dataclass(frozen=True)
class SkippedSample:
    """Takes the place of a sample that was left out; it never reaches the model.

    Attributes:
        index: number of the sample in its dataset, from 0.
        reason: the whole message: file, number, what was expected, what to do.
    """

    index: int
    reason: str


Key = int | Item
Sample = Mapping[str, Any] | SkippedSample


class Samples(Dataset, ABC):
    """A dataset of samples of our transforms. Only `__getitem__` and `where` have to be written.

    A key is the sample's number, from 0, and `len` counts the samples. In a stream, which has no numbers and
    no length, a key is an :class:`Item`.
    """

    @abstractmethod
    def __getitem__(self, key: Any) -> Sample:
        """The sample.

        Raises:
            ValueError, OSError: a bad sample. Any other exception is taken for one too.
        """

    @abstractmethod
    def where(self, key: Any) -> str:
        """File and number of the sample, for messages."""

    def size(self, key: Any) -> SampleSize:
        """Tokens and patches of the sample. This default reads the sample and decodes its images.

        Raises:
            ValueError, OSError: a bad sample.
        """
        sample = self[key]
        return SampleSize.of(sample) if isinstance(sample, Mapping) else SampleSize(0, 0)

    def fingerprint(self) -> str | None:
        """A hash of everything that determines the samples' lengths, except the image files themselves.

        None if that is not known; then lengths are measured again by each run.
        """
        return None

    def member(self, key: Any) -> int:
        """Which dataset of a mix the sample belongs to; 0 without a mix."""
        return 0

    def notes(self, key: Any) -> tuple[str, ...]:
        """What is odd about the sample's record or not read of it, without reading its images.

        Raises:
            ValueError, OSError: a bad sample.
        """
        return ()

    def check(self, key: Any, sample: Mapping[str, Any]) -> str | None:
        """What is wrong with a sample that was read, as a message that stops the run; None if nothing is."""
        return None


class ForeignSamples(Samples):
    """A map-style dataset that is not ours: torchtune's, one of `datasets`, a user's.

    Methods ``where(index)``, ``size(index)`` and ``fingerprint()`` are used if it has them.

    Args:
        dataset: with ``__getitem__`` and ``__len__``.
        name: of the dataset in a mix, for messages.
    """

    def __init__(self, dataset: Any, name: str | None = None) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int) -> Sample:
        return self.dataset[key]

    def where(self, key: int) -> str:
        own = self._own("where")
        return own(key) if own else _place(key, self.name)

    def size(self, key: int) -> SampleSize:
        own = self._own("size")
        return SampleSize(*own(key)) if own else super().size(key)

    def fingerprint(self) -> str | None:
        own = self._own("fingerprint")
        return own() if own else None

    def _own(self, method: str) -> Any:
        own = getattr(self.dataset, method, None)
        return own if callable(own) else None


class JoinedSamples(Samples):
    """Datasets one after the other.

    Args:
        datasets: map-style.
        name: of all of them together in a mix, for messages.
    """

    def __init__(self, datasets: Sequence[Dataset], name: str | None = None) -> None:
        self.datasets, self.name = [as_samples(dataset) for dataset in datasets], name
        self.places = Joined(map(len, self.datasets))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: int) -> Sample:
        part, index = self.places.find(key)
        return self.datasets[part][index]

    def where(self, key: int) -> str:
        return _place(key, self.name)

    def size(self, key: int) -> SampleSize:
        part, index = self.places.find(key)
        return self.datasets[part].size(index)

    def notes(self, key: int) -> tuple[str, ...]:
        part, index = self.places.find(key)
        return self.datasets[part].notes(index)

    def fingerprint(self) -> str | None:
        parts = [dataset.fingerprint() for dataset in self.datasets]
        return None if None in parts else Hasher.hash(parts)


def as_samples(dataset: Dataset, name: str | None = None) -> Samples:
    """Any map-style dataset as `Samples`; ours are returned as they are.

    Args:
        dataset: with ``__getitem__`` and ``__len__``.
        name: of the dataset in a mix, for messages about samples whose file is not known.
    """
    if isinstance(dataset, Samples):
        return dataset
    if isinstance(dataset, ConcatDataset):
        return JoinedSamples(dataset.datasets, name)
    return ForeignSamples(dataset, name)


def sample_size(samples: Samples, key: Any) -> SampleSize:
    """Tokens and patches of a sample.

    Returns:
        (0, 0) for a bad sample, or one that is too long: reading it later reports why.
    """
    try:
        return samples.size(key)
    except Exception:
        return SampleSize(0, 0)


def _place(key: int, name: str | None) -> str:
    if name is None:
        return f"sample {key} (from 0) of the dataset"
    return f"dataset {name}, sample {key} (from 0)"
