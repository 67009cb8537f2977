"""Images to visual tokens: reading, encoding and stopping early, in one run with the usual ways.

    python benchmarks/vision.py [--repeats 5] [--threads 2]

    read      a JPEG of 1600 x 1200 to patches; the other side is torchvision's Resize, ToTensor, Normalize of
              a PIL image, cut into patches
    small     JPEG files of 12 megapixels to tokens, fp32; the other side is transformers' processor and the
              same Qwen3-VL encoder, image by image
    bf16      JPEG files to tokens with the base shape in bf16; the other side is fp32, image by image
    mixed     the same with eight sizes of images
    layer     layer 12 of 24 of the base shape; the other side is the whole encoder

The photograph comes from scikit-image.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import Side, compare, describe_machine
from PIL import Image
from skimage import data as photographs
from torchvision import transforms as tv
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from torchtune_qwenvl.vision import VisionPipeline

MAX_PIXELS = 256 * 256
Sides = dict[str, Callable[[], object]]


def write_photograph(path: Path, size: tuple[int, int]) -> Path:
    """A JPEG of `size`, width and height."""
    photograph = Image.fromarray(photographs.astronaut()).resize(size, Image.Resampling.BICUBIC)
    photograph.save(path, "JPEG", quality=90)
    return path


def read(folder: Path) -> Sides:
    """A data loader's work for one image, stretched to 448 x 448."""
    jpeg = write_photograph(folder / "read.jpg", (1600, 1200)).read_bytes()
    pipeline = VisionPipeline.from_builder("vit_small", img_size=448)
    usual = tv.Compose(
        [
            tv.Resize((448, 448), tv.InterpolationMode.BICUBIC),
            tv.ToTensor(),
            tv.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def torchvision() -> torch.Tensor:
        pixels = usual(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        return (
            pixels.unflatten(2, (32, 14))
            .unflatten(1, (32, 14))
            .permute(1, 3, 0, 2, 4)
            .flatten(0, 1)
            .flatten(1)
        )

    return {"usual": torchvision, "ours": lambda: pipeline.inputs.read_image(jpeg)}


def small(folder: Path) -> Sides:
    """The same Qwen3-VL encoder of 12 layers of 512 on both sides."""
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "depth": 12,
        "num_heads": 8,
        "out_hidden_size": 1024,
    }
    config = Qwen3VLVisionConfig(**sizes, deepstack_visual_indexes=[3, 6, 9])
    model = Qwen3VLVisionModel._from_config(config, attn_implementation="sdpa").eval()
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen2VLImageProcessor(patch_size=16, min_pixels=32 * 32, max_pixels=MAX_PIXELS, **half)
    model.save_pretrained(folder / "encoder")
    processor.save_pretrained(folder / "encoder")
    pipeline = VisionPipeline.from_checkpoint(folder / "encoder")
    files = [write_photograph(folder / f"{i}.jpg", (4000, 3000)) for i in range(6)]

    @torch.no_grad()
    def reference() -> list[torch.Tensor]:
        found = []
        for file in files:
            inputs = processor(images=[Image.open(file).convert("RGB")], return_tensors="pt")
            found.append(model(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output)
        return found

    def ours() -> list[torch.Tensor]:
        return [tokens for batch in pipeline.stream(files, workers=0) for tokens in batch.tokens]

    return {"usual": reference, "ours": ours}


def bf16(folder: Path) -> Sides:
    """Eight photographs, pooled, stretched to one size."""
    return in_bf16([write_photograph(folder / f"{i}.jpg", (1600 - 100 * i, 1200)) for i in range(8)], 224)


def mixed(folder: Path) -> Sides:
    """Eight photographs of eight sizes, 99 to 414 patches, pooled; none is stretched or padded."""
    return in_bf16([write_photograph(folder / f"{i}.jpg", (126 + 28 * i, 154 + 14 * i)) for i in range(8)])


def in_bf16(files: list[Path], img_size: int | None = None) -> Sides:
    """The same weights of the base shape in fp32 one by one, and in bf16 batched."""
    torch.manual_seed(0)
    exact = VisionPipeline.from_builder("vit_base", img_size=img_size)
    fast = VisionPipeline.from_builder("vit_base", img_size=img_size, dtype=torch.bfloat16)
    fast.encoder.load_state_dict(exact.encoder.state_dict())

    def one_by_one() -> torch.Tensor:
        return torch.cat([exact([file], pool="mean").pooled for file in files])

    def batched() -> torch.Tensor:
        return torch.cat([batch.pooled for batch in fast.stream(files, workers=0, pool="mean")])

    cosine = torch.cosine_similarity(one_by_one(), batched().float()).min()
    print(f"lowest cosine of pooled tokens with fp32: {cosine:.5f}")
    return {"usual": one_by_one, "ours": batched}


def layer(folder: Path) -> Sides:
    """One image of 448 x 448, already read."""
    pipeline = VisionPipeline.from_builder("vit_base", img_size=448)
    image = pipeline.inputs.read_image(write_photograph(folder / "layer.jpg", (1600, 1200)))
    return {"usual": lambda: pipeline.encode([image]), "ours": lambda: pipeline.encode([image], layers=11)}


ROWS = {"read": read, "small": small, "bf16": bf16, "mixed": mixed, "layer": layer}


def main() -> None:
    """Print a row per comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; all when left out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine(arguments.threads))
    print("| row | usual ms | ours ms | ratio |\n|---|---|---|---|")
    for name in arguments.rows or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            sides: dict[str, Side] = ROWS[name](Path(folder))
            median = compare(sides, arguments.repeats, warmup=1)
        usual, ours = 1e3 * median["usual"], 1e3 * median["ours"]
        print(f"| {name} | {usual:.1f} | {ours:.1f} | {usual / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
