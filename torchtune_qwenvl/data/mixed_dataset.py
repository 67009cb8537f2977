"""Several datasets as one, mixed by weights."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch.utils.data import ConcatDataset, Dataset
from torchtune.config import instantiate

from torchtune_qwenvl.data.chat_dataset import vision_chat_dataset
from torchtune_qwenvl.data.dataset import SkippedSample
from torchtune_qwenvl.data.length_cache import fingerprint
from torchtune_qwenvl.data.order.mixture import Mixture
from torchtune_qwenvl.data.sizes import sample_size
from torchtune_qwenvl.data.streams.dataset import is_streamed
from torchtune_qwenvl.data.streams.mixed import MixedStream
from torchtune_qwenvl.transforms.size import SampleSize


class Members(Dataset):
    """Datasets one after the other, which know whose sample is whose.

    Args:
        datasets: map-style datasets.
        names: one for each, for messages and figures.
    """

    def __init__(self, datasets: Sequence[Dataset], names: Sequence[str]) -> None:
        self.datasets, self.names = list(datasets), list(names)
        self.lengths = [len(dataset) for dataset in datasets]  # type: ignore[arg-type]
        self._ends = list(accumulate(self.lengths))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any] | SkippedSample:
        member, inner = self.find(index)
        return self.datasets[member][inner]

    def find(self, index: int) -> tuple[int, int]:
        """Member, and number of the sample in it."""
        member = bisect_right(self._ends, index)
        return member, index - (self._ends[member - 1] if member else 0)

    def member(self, index: int) -> int:
        """Whose sample it is."""
        return self.find(index)[0]

    def where(self, index: int) -> str:
        """File and number of a sample, or the member's name and the number."""
        member, inner = self.find(index)
        dataset: Any = self.datasets[member]
        if hasattr(dataset, "where"):
            return dataset.where(inner)
        return f"dataset {self.names[member]}, sample {inner} (from 0)"

    def size(self, index: int) -> SampleSize:
        """Tokens and patches of a sample."""
        member, inner = self.find(index)
        return sample_size(self.datasets[member], inner)

    def fingerprint(self) -> str | None:
        """Of all members' lengths, see `length_cache`; None where one is not known."""
        return fingerprint(ConcatDataset(self.datasets))


class MixedDataset(Dataset):
    """One epoch of a mix as a map-style dataset; our recipe asks `mixture` for the order of each epoch.

    Sample i is the i-th of the first epoch: under a stock recipe's sampler the shares are right, but every
    epoch reads the same samples.

    Attributes:
        members: all samples of all datasets.
        mixture: the order of an epoch, as indices into `members`.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[object] | None = None,
        names: Sequence[str] | None = None,
        stopping_strategy: str = "first_exhausted",
    ) -> None:
        self.members = Members(datasets, names or [str(number) for number in range(len(datasets))])
        self.mixture = Mixture(self.members.lengths, weights, stopping_strategy)
        self._first_epoch = self.mixture.order(0)

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> Mapping[str, Any] | SkippedSample:
        return self.members[int(self._first_epoch[index])]

    def where(self, index: int) -> str:
        """File and number of a sample, or the member's name and the number."""
        return self.members.where(int(self._first_epoch[index]))

    def size(self, index: int) -> SampleSize:
        """Tokens and patches of a sample."""
        return self.members.size(int(self._first_epoch[index]))


def mixed_dataset(
    tokenizer: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    datasets: Sequence[Mapping[str, Any]],
    stopping_strategy: str = "first_exhausted",
) -> MixedDataset | MixedStream:
    """Several datasets, mixed by weights; a stream if one of them is.

    .. code-block:: yaml

        dataset:
          - {weight: 0.7, source: chats.jsonl}
          - {weight: 0.3, source: charts.parquet, style: qa, label: charts}

    is short for a ``dataset`` of this ``_component_`` with such a list as ``datasets``.

    A weight is the share of all samples drawn that come from the dataset: after any number of samples, each
    has been drawn its share of them, but for a sample or two, whatever the seed. Weights sum to 1; without
    any, each dataset is drawn in proportion to its length. A dataset is read in passes, each shuffled anew,
    each sample once per pass. With "first_exhausted" an epoch ends when the first dataset has been read
    once, and the next epoch goes on in the others' passes; with "all_exhausted" when all have been read
    once, and those that end earlier begin again.

    Args:
        tokenizer: the model's transform, handed to every builder.
        datasets: of each, ``weight``, ``label`` (for figures; else the source's), and a builder under
            ``_component_`` with its arguments; without one, those of ``vision_chat_dataset``.
        stopping_strategy: "first_exhausted" or "all_exhausted".

    Raises:
        ValueError: weights that do not fit, see `check_weights`; two datasets of one name; whatever a
            builder raises.
    """
    entries = [dict(entry) for entry in (_plain(datasets) or [])]
    weights = weights_of(entries)
    names = _names(entries)
    built = [_build(entry, tokenizer) for entry in entries]
    kind = MixedStream if any(map(is_streamed, built)) else MixedDataset
    return kind(built, weights, names, stopping_strategy)


def weights_of(entries: Sequence[Mapping[str, Any]]) -> list[object] | None:
    """The entries' weights; None where no entry has one.

    Raises:
        ValueError: no entries, or only some of them with a weight.
    """
    if not entries:
        raise ValueError("a mix of datasets: expected a list of at least one dataset, got none")
    without = [number for number, entry in enumerate(entries) if entry.get("weight") is None]
    if without and len(without) < len(entries):
        raise ValueError(
            f"a mix of datasets: expected a weight for all {len(entries)} or for none, dataset {without[0]} "
            "(from 0) has none"
        )
    return None if without else [entry["weight"] for entry in entries]


def _names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [
        str(entry.get("label") or _stem(entry.get("source"), number)) for number, entry in enumerate(entries)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"a mix of datasets: two are called {twice[0]!r}; give each a label of its own (label:)"
        )
    return names


def _stem(source: Any, number: int) -> str:
    return Path(source).stem if isinstance(source, str) else f"dataset_{number}"


def _build(entry: dict[str, Any], tokenizer: Any) -> Any:
    arguments = {key: value for key, value in entry.items() if key not in ("weight", "label")}
    if "_component_" in arguments:
        return instantiate(OmegaConf.create(arguments), tokenizer)
    return vision_chat_dataset(tokenizer, **arguments)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
