"""Video file -> patches: our video transform beside transformers' loading and processor, in one run.

    python benchmarks/video.py [--family qwen2_5_vl] [--backend pyav] [--repeats 5] [--threads 1]

The reference is transformers' way for a path: `load_video` with its decoder, then the family's video
processor (torchvision backend). torchcodec is the decoder its processors take, where that and FFmpeg are
installed; PyAV is `load_video`'s default. Both sides read two frames a second with the same limits, each in a
process of its own. Clips are a photograph under a moving window, H.264 with x264's own choice of key frames.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from common import compare_processes, describe_machine
from PIL import Image

# name -> frames, height, width; 30 a second
CLIPS = {
    "3 s, 320x240": (90, 240, 320),
    "30 s, 1280x720": (900, 720, 1280),
    "120 s, 640x360": (3600, 360, 640),
}
# family -> our module and class, transformers' model folder and class
FAMILIES = {
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLVideoTransform", "qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLVideoTransform", "qwen3_vl", "Qwen3VLVideoProcessor"),
    "glm4v": ("glm4v", "GLM4VVideoTransform", "glm4v", "Glm4vVideoProcessor"),
}
FPS = 2.0


def write_clip(path: Path, n_frames: int, height: int, width: int) -> None:
    """Encode a clip; the window jumps to another place every five seconds."""
    from skimage import data as photographs

    picture = np.asarray(Image.fromarray(photographs.astronaut()).resize((width + 400, height + 200)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(n_frames):
            turned = picture[::-1] if i // 150 % 2 else picture
            y, x = int(100 + 99 * np.sin(i / 40)), int(200 + 199 * np.sin(i / 77))
            window = np.ascontiguousarray(turned[y : y + height, x : x + width])
            frame = av.VideoFrame.from_ndarray(window, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def reference_side(path: Path, family: str, backend: str):
    from transformers.video_utils import load_video

    _, _, folder, name = FAMILIES[family]
    module = importlib.import_module(f"transformers.models.{folder}.video_processing_{folder}")
    processor = getattr(module, name)(fps=FPS, do_sample_frames=True)
    sample = functools.partial(processor.sample_frames, fps=FPS)

    def run():
        video, metadata = load_video(str(path), backend=backend, sample_indices_fn=sample)
        found = processor(
            videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
        )
        return len(found["pixel_values_videos"])

    return run


def our_side(path: Path, family: str, dtype: str):
    module, name, *_ = FAMILIES[family]
    made = importlib.import_module(f"torchtune_qwenvl.models.{module}")
    transform = getattr(made, name)(fps=FPS, dtype=dtype)
    return lambda: len(transform({"video": path})["pixel_values_videos"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, default="qwen2_5_vl")
    parser.add_argument("--backend", choices=("pyav", "torchcodec"), default="pyav")
    parser.add_argument("--clip", choices=CLIPS, action="append", help="all when left out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch; a data worker has one")
    arguments = parser.parse_args()
    print(f"{describe_machine(arguments.threads)}, PyAV {av.__version__}, {arguments.family}")
    print(f"reference: transformers decoding with {arguments.backend}; ms: wall, in brackets CPU time")
    print("| clip | reference ms | ours float32 ms | ratio | ours uint8 ms | ratio |", end="")
    print(" reference MB | float32 MB | ratio | uint8 MB | ratio |\n|---|" + "---|" * 10)
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.clip or CLIPS:
            shape = CLIPS[name]
            path = Path(temporary) / f"{shape[0]}.mp4"
            write_clip(path, *shape)
            reference = functools.partial(reference_side, path, arguments.family, arguments.backend)
            sides = {"reference": reference}
            for dtype in ("float32", "uint8"):
                sides[dtype] = functools.partial(our_side, path, arguments.family, dtype)
            result = compare_processes(sides, arguments.repeats, arguments.threads, warmup=1)
            assert len({side["value"] for side in result.values()}) == 1, "numbers of patches differ"
            print(f"| {name} | {row(result)} |", flush=True)


def row(result: dict[str, dict]) -> str:
    """Times, then peaks of memory, each of ours with its ratio to the reference."""
    cells, reference = [], result["reference"]
    for name, side in result.items():
        cells.append(f"{1e3 * side['seconds']:.0f} ({1e3 * side['cpu_seconds']:.0f})")
        if name != "reference":
            wall, cpu = (reference[key] / side[key] for key in ("seconds", "cpu_seconds"))
            cells.append(f"{wall:.2f} ({cpu:.2f})")
    for name, side in result.items():
        cells.append(f"{side['peak_mb']:.0f}")
        if name != "reference":
            cells.append(f"{side['peak_mb'] / reference['peak_mb']:.2f}")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
