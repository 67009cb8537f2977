"""Video file to patches: our video transform against transformers' loading and processor, in one run.

    python benchmarks/video.py [--family qwen2_5_vl] [--backend pyav] [--repeats 5] [--threads 1]

The reference loads a path as transformers does: `load_video` with its decoder, then the family's video
processor (torchvision backend). transformers' processors decode with torchcodec if it and FFmpeg are
installed; PyAV is the default of `load_video`. Both sides read two frames per second (with GLM-4.6V, its own
number) with the same limits, each in its own process. Clips show a moving window over a photograph, in H.264
with x264's choice of key frames. Memory is the peak of the whole process, and in brackets its rise after
imports and set-up.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from common import compare_processes, describe_machine
from PIL import Image

Pair = tuple[float, float]
# name -> frames, height, width; 30 frames per second
CLIPS = {
    "3 s, 320x240": (90, 240, 320),
    "30 s, 1280x720": (900, 720, 1280),
    "120 s, 640x360": (3600, 360, 640),
}
# rules -> our module and class, transformers' model folder and class
FAMILIES = {
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLVideoTransform", "qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLVideoTransform", "qwen3_vl", "Qwen3VLVideoProcessor"),
    "glm4v": ("glm4v", "GLM4VVideoTransform", "glm4v", "Glm4vVideoProcessor"),
    "glm46v": ("glm4v", "GLM46VVideoTransform", "glm46v", "Glm46VVideoProcessor"),
}
# GLM-4.6V's rate depends on the length of a clip: six frames per second up to 30 seconds, then two.
SAMPLING = {family: {} if family == "glm46v" else {"fps": 2.0} for family in FAMILIES}


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
    processor = getattr(module, name)(do_sample_frames=True, **SAMPLING[family])
    sample = functools.partial(processor.sample_frames, **SAMPLING[family])

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
    transform = getattr(made, name)(dtype=dtype, **SAMPLING[family])
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
    print(f"reference: transformers decoding with {arguments.backend}; ms: wall, in brackets CPU time;")
    print("MB: peak of the process, in brackets without what was there before the first clip")
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
    """A row of the table: times, then peak memory, ours with their ratios to the reference."""
    times = cells(result, lambda side: (1e3 * side["seconds"], 1e3 * side["cpu_seconds"]), faster)
    memory = cells(result, lambda side: (side["peak_mb"], side["peak_mb"] - side["start_mb"]), share)
    return " | ".join(times + memory)


def cells(
    result: dict[str, dict], values: Callable[[dict], Pair], ratio: Callable[[Pair, Pair], str]
) -> list[str]:
    """Two values of each side, the second in brackets, and the ratios of ours to the reference's."""
    found, reference = [], values(result["reference"])
    for name, side in result.items():
        first, second = values(side)
        found.append(f"{first:.0f} ({second:.0f})")
        if name != "reference":
            found.append(ratio(reference, (first, second)))
    return found


def faster(reference: Pair, ours: Pair) -> str:
    return f"{reference[0] / ours[0]:.2f} ({reference[1] / ours[1]:.2f})"


def share(reference: Pair, ours: Pair) -> str:
    return f"{ours[0] / reference[0]:.2f} ({ours[1] / reference[1]:.2f})"


if __name__ == "__main__":
    main()
