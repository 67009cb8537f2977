"""Streams mixed by weights. Map-style datasets may be among them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from torchtune_qwenvl.data.order.mixture import check_strategy, check_weights
from torchtune_qwenvl.data.samples import Item, Sample
from torchtune_qwenvl.data.streams.dataset import Streamed, as_streamed
from torchtune_qwenvl.data.streams.stream import Cursor, Share, State
from torchtune_qwenvl.transforms.size import SampleSize


class MixedStream(Streamed):
    """Several datasets as one stream, each with its share of the samples.

    Every process draws from its own share of each member, in the same turns as `Mixture`. With
    "first_exhausted" a pass over the mix ends when one member ends, and the next pass continues the others.
    With "all_exhausted" it ends when all have ended; members that end earlier begin again.

    Args:
        members: datasets of any kind.
        weights: each member's share of the drawn samples, see `check_weights`.
        names: one for each, for figures.
        stopping_strategy: "first_exhausted" or "all_exhausted".

    Raises:
        ValueError: no weights (streams have no lengths to derive them from), or weights that do not fit.
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
                f"{len(weights or ())}; a stream has no length to derive a weight from"
            )
        self.members = [as_streamed(member) for member in members]
        self.weights, self.names = check_weights(weights), list(names)
        self.repeats = check_strategy(stopping_strategy) == "all_exhausted"

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """See `Stream`; at the end of a pass, its state opens the next."""
        return _MixedCursor(self, share, number, state)

    def __getitem__(self, key: Item) -> Sample:
        return self.members[key.member][key]

    def member(self, key: Item) -> int:
        return key.member

    def where(self, key: Item) -> str:
        """File and line, or the member's name and the number."""
        return self.members[key.member].where(key)

    def size(self, key: Item) -> SampleSize:
        return self.members[key.member].size(key)


class _MixedCursor:
    def __init__(self, mix: MixedStream, share: Share, number: int, state: State | None) -> None:
        self._mix, self._share = mix, share
        n = len(mix.members)
        fresh = {"drawn": [0] * n, "passes": [number] * n, "ended": [not w for w in mix.weights]}
        state = state or {**fresh, "weights": mix.weights, "members": [None] * n}
        if state["weights"] != mix.weights:
            raise ValueError(
                f"the run that is resumed mixed its datasets with the weights {state['weights']}, not "
                f"{mix.weights}; give it the weights that it began with"
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
            f"a mix of streams: process {self._share.rank} gets no sample of {self._mix.names[member]}, "
            "which has fewer samples than there are processes"
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
