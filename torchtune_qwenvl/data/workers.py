"""How data workers are started, so that they share imported modules instead of importing them again.

    fork          (Linux, Python up to 3.13)   a worker is a copy of this process: it shares all memory pages
    forkserver    (Linux, from Python 3.14)    a server imports once what this process has imported; a worker
                                               is a copy of the server and shares its pages
    spawn         (macOS, Windows)             each worker imports everything itself

The platform's start method is used, or the one that a script has set by `multiprocessing.set_start_method`.
fork needs the least memory and works with datasets that cannot be pickled. forkserver is safe even if a
thread of this process holds a lock. `benchmarks/workers.py` measures all of them.
"""

import multiprocessing
import os
import pickle
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import DataLoader

from torchtune_qwenvl.processes import end_worker_with_parent

PACKAGE = __name__.partition(".")[0]


def begin_sharing(num_workers: int) -> None:
    """If workers are started by a fork server, start it now, so that it imports in the background.

    A call before the model is loaded hides the time of these imports. A second call does nothing.
    """
    if num_workers and start_method() == "forkserver":
        multiprocessing.set_forkserver_preload(modules_to_share())
        forkserver.ensure_running()


def worker_options(num_workers: int) -> dict[str, Any]:
    """Arguments of a DataLoader that say how its workers are started.

    Args:
        num_workers: processes that read; with 0 this process does.
    """
    begin_sharing(num_workers)
    return {
        "num_workers": num_workers,
        # Its own, since starting workers draws a seed: that must not move the random numbers of training.
        "generator": torch.Generator(),
        "worker_init_fn": _begin_worker,
    }


def _begin_worker(worker: int) -> None:
    _leave_signals_to_the_run()
    end_worker_with_parent(worker)


def _leave_signals_to_the_run() -> None:
    """Leave the run's group of processes, to which a terminal sends Ctrl-C and torchrun SIGTERM.

    The run finishes its step before it stops, and needs the workers' batches until then. It ends them itself;
    a worker whose run has died ends by torch's own watch on its parent.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def start_method() -> str:
    """The start method of workers; asking does not fix it, so a script may still choose another."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    return chosen or multiprocessing.get_all_start_methods()[0]


def modules_to_share() -> list[str]:
    """What a fork server imports before it starts workers.

    A worker runs the imports of the main script again, which are cheap once their modules are loaded. So this
    is the main script where Python can preload it, and every module of this package that was imported here.
    """
    return ["__main__", *sorted(name for name in sys.modules if name.partition(".")[0] == PACKAGE)]


def started(batches: DataLoader) -> Iterator[Any]:
    """`iter(batches)`, which starts the workers.

    Raises:
        ValueError: the dataset cannot be sent to workers, since it cannot be pickled.
    """
    try:
        return iter(batches)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        reason = _why_not_picklable(batches)
        if reason is None:
            raise
        raise ValueError(
            f"num_workers={batches.num_workers}: expected a dataset that can be pickled, as workers are "
            f"started by {start_method()}: {reason}. Define its classes and functions at the top level, "
            "or set num_workers=0."
        ) from error


def _why_not_picklable(batches: DataLoader) -> str | None:
    try:
        ForkingPickler.dumps((batches.dataset, batches.collate_fn))
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        return str(error)
    return None
