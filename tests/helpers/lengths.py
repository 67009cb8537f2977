"""Random lengths, distributed as those of conversations in instruction data with images."""

import random


def long_tailed(n: int, seed: int = 0, longest: int = 8192) -> list[int]:
    """`n` log-normal lengths with median 400 and mean about 800 tokens, at most `longest`."""
    rng = random.Random(seed)
    return [max(8, min(int(rng.lognormvariate(6.0, 1.2)), longest)) for _ in range(n)]
