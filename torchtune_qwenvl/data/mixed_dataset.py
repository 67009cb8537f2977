"""Several datasets as one, mixed by weights."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch.utils.data import Dataset
from torchtune.config import instantiate

from torchtune_qwenvl.data.chat_dataset import vision_chat_dataset
from torchtune_qwenvl.data.order.mixture import Mixture
from torchtune_qwenvl.data.samples import JoinedSamples, Sample, Samples, as_samples
from torchtune_qwenvl.data.streams.dataset import is_streamed
from torchtune_qwenvl.data.streams.mixed import MixedStream
from torchtune_qwenvl.transforms.size import SampleSize


class Members(Samples):
    """The datasets of a mix, one after the other.

    Args:
        datasets: map-style.
        names: one for each, for messages and figures.
    """

    def __init__(self, datasets: Sequence[Dataset], names: Sequence[str]) -> None:
        self.joined = JoinedSamples([as_samples(d, name) for d, name in zip(datasets, names, strict=True)])
        self.names = list(names)

    @property
    def datasets(self) -> list[Samples]:
        """The members."""
        return self.joined.datasets

    def __len__(self) -> int:
        return len(self.joined)

    def __getitem__(self, key: int) -> Sample:
        return self.joined[key]

    def member(self, key: int) -> int:
        return self.joined.places.find(key).part

    def where(self, key: int) -> str:
        """File and number of a sample, or the member's name and the number."""
        part, index = self.joined.places.find(key)
        return self.datasets[part].where(index)

    def size(self, key: int) -> SampleSize:
        return self.joined.size(key)

    def notes(self, key: int) -> tuple[str, ...]:
        return self.joined.notes(key)

    def fingerprint(self) -> str | None:
        return self.joined.fingerprint()


class MixedDataset(Samples):
    """One epoch of a mix as a map-style dataset; our recipe asks `mixture` for the order of each epoch.

    Sample i is the i-th of the first epoch. With a stock recipe's sampler the shares are right, but every
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
        lengths = [len(dataset) for dataset in self.members.datasets]  # type: ignore[arg-type]
        self.mixture = Mixture(lengths, weights, stopping_strategy)
        self._first_epoch = self.mixture.order(0)

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, key: int) -> Sample:
        return self.members[self._member_key(key)]

    def where(self, key: int) -> str:
        return self.members.where(self._member_key(key))

    def size(self, key: int) -> SampleSize:
        return self.members.size(self._member_key(key))

    def member(self, key: int) -> int:
        return self.members.member(self._member_key(key))

    def _member_key(self, key: int) -> int:
        return int(self._first_epoch[key])


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

    A weight is the share of all drawn samples that come from the dataset. The shares are exact to within a
    sample or two after any number of samples, whatever the seed. Weights sum to 1; without any, each dataset
    is drawn in proportion to its length. A dataset is read in passes. Each pass has its own shuffled order
    and reads every sample once. With "first_exhausted" an epoch ends when the first dataset has been read
    once, and the next epoch continues the others' passes. With "all_exhausted" it ends when all have been
    read once, and datasets that end earlier begin again.

    Args:
        tokenizer: the model's transform, passed to every builder.
        datasets: each with a ``weight``, a ``label`` for figures (default: the source's name), and a builder
            under ``_component_`` with its arguments. Without a builder it is ``vision_chat_dataset``.
        stopping_strategy: "first_exhausted" or "all_exhausted".

    Raises:
        ValueError: weights that do not fit, see `check_weights`; two datasets with the same name; whatever
            a builder raises.
    """
    entries = [dict(entry) for entry in (_plain(datasets) or [])]
    weights = weights_of(entries)
    names = _names(entries)
    built = [_build(entry, tokenizer) for entry in entries]
    kind = MixedStream if any(map(is_streamed, built)) else MixedDataset
    return kind(built, weights, names, stopping_strategy)


def weights_of(entries: Sequence[Mapping[str, Any]]) -> list[object] | None:
    """The entries' weights, or None if no entry has one.

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
