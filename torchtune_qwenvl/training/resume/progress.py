"""How far a run has come."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        epoch: of the last batch, counted from 0.
        epoch_start: steps done before this epoch.
        data: this rank's place in the data, from the loader's `state_dict()`; None at the start. It counts
            samples, so a resumed run may have other batches.
        planned_steps: steps that the settings give for a whole run; 0 at the start.
        schedule_steps: steps that the learning rate schedule spans.
        empty_steps: how many of `step` had no sample, so that nothing was updated.
        nonfinite_steps: how many of `step` were skipped because of NaN or infinity (on_nonfinite=skip).
    """

    step: int = 0
    epoch: int = 0
    epoch_start: int = 0
    data: dict[str, Any] | None = None
    planned_steps: int = 0
    schedule_steps: int = 0
    empty_steps: int = 0
    nonfinite_steps: int = 0
