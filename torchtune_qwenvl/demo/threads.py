"""How many threads the demo computes in."""

import torch


def one_thread() -> None:
    """Compute in one thread; the other core prepares the data.

    The matrices of a tiny model are not worth sharing, and threads that wait for each other cost far more
    than they bring where anything else runs: 1.2 s a step instead of 0.13 s beside two busy processes.
    """
    torch.set_num_threads(1)
