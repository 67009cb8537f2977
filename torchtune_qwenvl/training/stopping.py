"""Ctrl-C and SIGTERM: a run finishes its step, saves, says how to go on, and ends with exit code 130 or 143.

While a run trains, a signal is only noted; after each step all ranks learn whether any of them was asked to
stop. Before and after training, and at a second Ctrl-C in a single process, it stops at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run ends because a signal asked it to.

    Args:
        number: of the signal.
        message: one line: where the run stands and how to go on.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell counts: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


class Signals:
    """What this process was asked.

    Args:
        forgiving: whether further signals change nothing. torchrun sends a Ctrl-C on to processes that have
            had it from the terminal already.

    Attributes:
        received: the first signal's number; None if there was none.
    """

    def __init__(self, forgiving: bool = False) -> None:
        self.received: int | None = None
        self.forgiving = forgiving
        self._training = False

    @contextmanager
    def caught(self) -> Iterator["Signals"]:
        """Context in which signals come here. In another thread than the main one nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._receive) for number in STOPPING}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Context of the training, in which a signal is noted until `received` is read."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def stopped(self, how: str) -> Stopped:
        """The error that ends the run. Another rank may have had the signal; then it counts as SIGTERM."""
        number = self.received or signal.SIGTERM
        return Stopped(number, f"stopped by {signal.Signals(number).name} {how}")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        if self.received is None:
            self.received = number
        if again and self.forgiving:
            return
        if again or not self._training:
            raise self.stopped("in the middle of a step" if self._training else "before or after training")
