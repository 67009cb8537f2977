"""Lengths of conversations as instruction data with images has them."""

import random


def long_tailed(n: int, seed: int = 0, longest: int = 8192) -> list[int]:
    """Log-normal, median 400, mean about 800 tokens; what is longer than a row is cut to it."""
    rng = random.Random(seed)
    return [max(8, min(int(rng.lognormvariate(6.0, 1.2)), longest)) for _ in range(n)]
