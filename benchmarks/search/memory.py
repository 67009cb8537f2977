"""Peak memory of building an index and searching in it, for 1,000 images and for 10,000.

    python benchmarks/search/memory.py [--tokens] [--counts 1000 10000]

Each count has a process of its own. The images are small PNG files, the encoder is one layer of width 1,024;
--tokens keeps all of its 16 tokens per image instead of their mean.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from torchtune_qwenvl.vision import ImageIndex, VisionPipeline


def measure(count: int, tokens: bool) -> float:
    """Peak of resident memory in MB, of this process."""
    with tempfile.TemporaryDirectory() as name:
        photos, random = Path(name) / "photos", np.random.default_rng(0)
        photos.mkdir()
        for number in range(count):
            pixels = random.integers(0, 256, (56, 56, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / f"{number:05d}.png", compress_level=0)
        pipeline = VisionPipeline.from_builder(
            "vit_small", depth=1, embed_dim=1024, num_heads=16, img_size=56
        )
        index = ImageIndex.build(
            photos, pipeline, Path(name) / "index", pool=None if tokens else "mean", workers=0
        )
        assert index.search(photos / "00007.png", pipeline, k=1)[0].name == "00007.png"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a row per count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.measure, arguments.tokens))
        return
    print("| images | peak MB |\n|---|---|")
    for count in arguments.counts:
        command = [sys.executable, __file__, "--measure", str(count), *["--tokens"] * arguments.tokens]
        peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"| {count:,} | {float(peak.split()[-1]):.0f} |", flush=True)


if __name__ == "__main__":
    main()
