"""Limit the number of threads that the demo uses."""

import torch


def one_thread() -> None:
    """Compute with one thread; other cores prepare the data.

    The matrices of a tiny model are too small for several threads, and threads that wait for each other slow
    it down on a busy machine: 1.2 s per step instead of 0.13 s while two other processes were running.
    """
    torch.set_num_threads(1)
