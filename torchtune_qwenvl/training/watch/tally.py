"""What a run did in all, for its last lines."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.reasons import by_kind, skipped_lines
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
        for text in world.gather(json.dumps(_examples(skipped))):
            reasons.update(json.loads(text))
        since = f"after step {self._first_step}: " if self._first_step else ""
        took = timedelta(seconds=round(time.monotonic() - self._began))
        samples, tokens = (self._work.read().samples, self._work.read().tokens) if self._work else (0, 0)
        done = f"{counted(samples, 'sample')}, {counted(tokens, 'token')}"
        first = f"finished {counted(step, 'step')} in {took}; {since}{done}"
        also = [counted(count, noun_of(name)) for name, count in notes.items() if count]
        return [
            "; ".join([first, *also]),
            *skipped_lines(by_kind(reasons)),
            *(f"{name:<10}{path}" for name, path in files.items() if path.exists()),
        ]


def _examples(skipped: Mapping[str, int]) -> dict[str, int]:
    """One message of each kind, and how many samples are of this kind."""
    return {kind.example: kind.count for kind in by_kind(skipped).values()}


def noun_of(name: str) -> str:
    """What a counter counts, in the singular: "empty_steps" -> "empty step"."""
    return name.replace("_", " ").removesuffix("s")
