"""Processes that end with the process that started them, so that a killed run leaves nothing behind.

A killed launcher cannot tell its children. Each of them asks instead, once a second, whether its parent is
still the same: that works on every system, and for every way to start processes.
"""

import logging
import os
import signal
import threading
import time

log = logging.getLogger(__name__)

GRACE = 30.0  # seconds in which a rank may save after its launcher has died


def end_with_launcher() -> None:
    """Let a rank that torchrun has started end with torchrun.

    It first gets SIGTERM, so that it can save, and SIGKILL after `GRACE` seconds. A single process, whose
    parent is a shell, is left alone: it may outlive the shell.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        watch_parent(grace=GRACE)


def end_worker_with_parent(worker: int = 0) -> None:
    """Let a data worker end with the process that reads from it; for `worker_init_fn`."""
    watch_parent(grace=0.0)


def watch_parent(grace: float, every: float = 1.0) -> threading.Thread:
    """Start a thread that ends this process after its parent.

    Args:
        grace: seconds between SIGTERM and SIGKILL; 0 sends SIGKILL at once.
        every: seconds between two looks.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        if grace:
            log.warning(f"the process that started this one has ended: this one ends within {grace:.0f} s")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace)
        os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=watch, name="watch_parent", daemon=True)
    thread.start()
    return thread
