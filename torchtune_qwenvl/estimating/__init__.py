"""`tune-qwenvl estimate`: memory and time of a config before there is a GPU.

    cards.py     GPUs: what they can do and hold
    workload.py  the conversations of a forward pass
    tally.py     seconds and kept bytes of single kernels
    layers.py    one transformer layer
    model.py     all layers of a config's model, without weights
    memory.py    the fullest moment of a step
    time.py      seconds of a step
    report.py    the answer in words

Everything is computed from sizes; nothing runs and nothing is downloaded. Layers are counted as they run
without torch.compile, which keeps less and is faster. `tests/estimating` compares with measurements.
"""

from torchtune_qwenvl.estimating.estimate import Estimate, estimate

__all__ = ["Estimate", "estimate"]
