"""Streams mixed by weights; datasets with numbered samples may be among them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from torchtune_qwenvl.data.dataset import SkippedSample
from torchtune_qwenvl.data.order.mixture import check_strategy, check_weights
from torchtune_qwenvl.data.streams.dataset import as_streamed
from torchtune_qwenvl.data.streams.stream import Cursor, Item, Share, State
from torchtune_qwenvl.transforms.size import SampleSize


class MixedStream(IterableDataset):
    """Several datasets as one stream, each with its share of the samples.

    Every process draws its own share of each member, in turns as `Mixture` takes them. A pass over the mix
    ends with the member that ends first, and the next pass goes on in the others; or when all have ended,
    where those that end earlier begin again.

    Args:
        members: datasets of any kind.
        weights: shares of the samples drawn, see `check_weights`.
        names: one for each, for figures.
        stopping_strategy: "first_exhausted" or "all_exhausted".

    Raises:
        ValueError: no weights: streams have no lengths to take them from; weights that do not fit.
    """

    def __init__(
        self,
        members: Sequence[Dataset],
        weights: Sequence[object] | None,
        names: Sequence[str],
        stopping_strategy: str = "first_exhausted",
    ) -> None:
        if weights is None or len(weights) != len(members):
            raise ValueError(
                f"a mix with streams: expected a weight for each of {len(members)} datasets, got "
                f"{len(weights or ())}; a stream has no length that could stand for one"
            )
        self.members = [as_streamed(member) for member in members]
        self.weights, self.names = check_weights(weights), list(names)
        self.repeats = check_strategy(stopping_strategy) == "all_exhausted"

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """See `Stream`; behind the end of a pass, its state opens the next."""
        return _MixedCursor(self, share, number, state)

    def __getitem__(self, item: Item) -> Mapping[str, Any] | SkippedSample:
        return self.members[item.member][item]

    def __iter__(self) -> Iterator[Mapping[str, Any] | SkippedSample]:
        """The samples of one pass."""
        return (self[item] for item in self.open(Share(shuffle=False), 0))

    def member(self, item: Item) -> int:
        """Whose item it is."""
        return item.member

    def where(self, item: Item) -> str:
        """File and line, or the member's name and the number."""
        return self.members[item.member].where(item)

    def size(self, item: Item) -> SampleSize:
        """Tokens and patches of the item's sample."""
        return self.members[item.member].size(item)


class _MixedCursor:
    def __init__(self, mix: MixedStream, share: Share, number: int, state: State | None) -> None:
        self._mix, self._share = mix, share
        n = len(mix.members)
        fresh = {"drawn": [0] * n, "passes": [number] * n, "ended": [not w for w in mix.weights]}
        state = state or {**fresh, "weights": mix.weights, "members": [None] * n}
        if state["weights"] != mix.weights:
            raise ValueError(
                f"the run that is resumed mixed its datasets with the weights {state['weights']}, not "
                f"{mix.weights}; give it those that it began with"
            )
        self._drawn, self._passes, self._ended = (list(state[key]) for key in ("drawn", "passes", "ended"))
        places = zip(mix.members, self._passes, state["members"], strict=True)
        self._cursors = [member.open(share, number, place) for member, number, place in places]

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        for _ in range(2 * len(self._cursors)):
            member = self._whose_turn()
            item = next(self._cursors[member], None)
            if item is not None:
                self._drawn[member] += 1
                return replace(item, member=member)
            self._begin_again(member)
            if all(self._ended) or not self._mix.repeats:
                self._end_pass()
                raise StopIteration
        raise ValueError(
            f"a mix of streams: process {self._share.rank} gets nothing of {self._mix.names[member]}, which "
            "has fewer samples than there are processes"
        )

    def state_dict(self) -> State:
        return {
            "weights": self._mix.weights,
            "drawn": list(self._drawn),
            "passes": list(self._passes),
            "ended": list(self._ended),
            "members": [cursor.state_dict() for cursor in self._cursors],
        }

    def _whose_turn(self) -> int:
        turns = [
            ((drawn + 0.5) / weight, member)
            for member, (drawn, weight) in enumerate(zip(self._drawn, self._mix.weights, strict=True))
            if weight
        ]
        return min(turns)[1]

    def _begin_again(self, member: int) -> None:
        self._ended[member] = True
        self._passes[member] += 1
        self._cursors[member] = self._mix.members[member].open(self._share, self._passes[member])

    def _end_pass(self) -> None:
        self._drawn = [0] * len(self._drawn)
        self._ended = [not weight for weight in self._mix.weights]
