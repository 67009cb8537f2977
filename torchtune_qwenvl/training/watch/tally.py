"""What a run did in all, for its last lines."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from torchtune_qwenvl.data.reasons import masked
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.watch.metrics import Step, TotalWork


class Tally:
    """Counts from the start of this process on.

    Args:
        first_step: steps done before, by the run that is resumed.
    """

    def __init__(self, first_step: int = 0) -> None:
        self._first_step = first_step
        self._began = time.monotonic()
        self._work: TotalWork | None = None

    def add(self, step: Step) -> None:
        """Add a step, whose figures are on the host; one that changed nothing counts for nothing."""
        if not step.taken:
            return
        self._work = step.work if self._work is None else self._work + step.work

    def lines(
        self,
        step: int,
        skipped: Mapping[str, int],
        world: World,
        notes: Mapping[str, int],
        files: Mapping[str, Path],
    ) -> list[str]:
        """The last lines of a run. All ranks must call.

        Args:
            step: the last one.
            skipped: reason -> samples that this rank left out.
            world: the ranks.
            notes: what else was counted; zeros are left out.
            files: what the run has written, by name.
        """
        reasons: Counter[str] = Counter()
        for text in world.gather(json.dumps(_by_kind(skipped))):
            reasons.update(json.loads(text))
        since = f"after step {self._first_step}: " if self._first_step else ""
        took = timedelta(seconds=round(time.monotonic() - self._began))
        samples, tokens = (self._work.read().samples, self._work.read().tokens) if self._work else (0, 0)
        first = f"finished {step} steps in {took}; {since}{samples:,.0f} samples, {tokens:,.0f} tokens"
        counted = [f"{count} {name.replace('_', ' ')}" for name, count in notes.items() if count]
        return [
            "; ".join([first, *counted]),
            *(f"skipped {count} samples: {reason}" for reason, count in reasons.most_common()),
            *(f"{name:<10}{path}" for name, path in files.items() if path.exists()),
        ]


def _by_kind(skipped: Mapping[str, int]) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for reason, count in skipped.items():
        kinds[masked(reason)] += count
    return dict(kinds)
