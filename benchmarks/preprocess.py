"""JPEG bytes to batch: our transform and collate against transformers' processor, in one run.

    python benchmarks/preprocess.py [--repeats 15] [--threads 1]

Both sides decode with torchvision's `decode_jpeg`; the reference is `Qwen2VLImageProcessor` (torchvision
backend) with the same pixel limits. The image is a photograph from scikit-image, resized to the table's
sizes.
"""

from __future__ import annotations

import argparse
import io

import torch
from common import compare, describe_machine
from PIL import Image
from skimage import data as photographs
from torchvision.io import ImageReadMode, decode_jpeg
from transformers import Qwen2VLImageProcessor

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.models.qwen2_5_vl import Qwen2_5_VLImageTransform

SIZES = {"512x512": (512, 512), "1920x1280": (1920, 1280), "4000x3000": (4000, 3000)}  # width, height
LIMITS = {"min_pixels": 3136, "max_pixels": 1003520}


def jpeg_bytes(size: tuple[int, int]) -> bytes:
    photograph = Image.fromarray(photographs.astronaut()).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    photograph.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def reference_side(jpeg: bytes):
    processor = Qwen2VLImageProcessor(**LIMITS)

    def run():
        image = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return processor(images=[image], return_tensors="pt")

    return run


def our_side(jpeg: bytes, dtype: torch.dtype):
    transform = Qwen2_5_VLImageTransform(**LIMITS, dtype=dtype)

    def run():
        image = transform({"image": jpeg})
        grid = image["image_grid_thw"]
        sample = {
            "tokens": [0],
            "mask": [True],
            "input_pos": torch.zeros(1, 3, dtype=torch.int64),
            "encoder_input": {"vision": {"images": [image["pixel_values"]], "grid_thw": grid.reshape(1, 3)}},
        }
        return collate([sample], padding_idx=0, ignore_idx=-100)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="a data worker has one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine(arguments.threads))
    print(
        "| JPEG | reference ms | ours float32 ms | ratio | ours uint8 ms | ratio |\n|---|---|---|---|---|---|"
    )
    for name, size in SIZES.items():
        jpeg = jpeg_bytes(size)
        sides = {
            "reference": reference_side(jpeg),
            "float32": our_side(jpeg, torch.float32),
            "uint8": our_side(jpeg, torch.uint8),
        }
        median = compare(sides, arguments.repeats)
        row = [f"{1e3 * median['reference']:.2f}"]
        for side in ("float32", "uint8"):
            row += [f"{1e3 * median[side]:.2f}", f"{median['reference'] / median[side]:.2f}"]
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
