"""Give up on a call that takes too long, such as decoding a hostile file.

Python cannot stop a call in C, so the call runs in a thread of its own, and after the time limit its result
is no longer waited for. One thread serves all calls that end in time; a late one is left to itself.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Worker:
    """A thread that makes one call after another."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="time limit").start()

    def _run(self) -> None:
        while True:
            function, answers = self.calls.get()
            try:
                answers.put((function(), None))
            except BaseException as error:
                answers.put((None, error))
            del function, answers  # what they hold is not kept until the next call


_own = threading.local()


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Call a function, and raise TimeoutError if it has not returned after this time.

    Args:
        seconds: the limit.
        function: what is called, in another thread; its own errors are raised as they are.
    """
    worker = getattr(_own, "worker", None)
    if worker is None or worker.process != os.getpid():  # threads do not survive a fork
        worker = _own.worker = _Worker()
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    worker.calls.put((function, answers))
    try:
        answer, error = answers.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        _own.worker = None
        raise TimeoutError(f"takes longer than {seconds:g} seconds") from None
    if error is not None:
        raise error
    return answer
