"""Where the time of a training step on an H100 goes, estimated without one.

    python benchmarks/roofline.py 7B_lora 3B_full

A micro-batch of 8,192 tokens (eight conversations, 47 % of the tokens visual, a quarter labelled) goes
through the recipe's step on fake CUDA tensors of the real model. Each kernel takes as long as its operations
at 72 % of the peak (attention 50 %), or its bytes at 80 % of the bandwidth. A compiled layer is estimated by
its graphs, see tests/helpers/rehearsal/fusion.py. These are estimates: nothing here has run on a GPU.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "tests" / "helpers"))

from rehearsal import shim  # noqa: E402

TOKENS, DOCUMENTS = 8192, 8
IMAGES = ((1, 46, 36), (1, 34, 46), (1, 64, 44), (1, 28, 62))  # in turns, until 47 % of the tokens are visual
CONFIGS = {
    "7B_lora": ("qwen2_5_vl", "lora", "qwen2_5_vl_7b"),
    "3B_full": ("qwen2_5_vl", "full", "qwen2_5_vl_3b"),
    "Qwen3_8B_lora": ("qwen3_vl", "lora", "qwen3_vl_8b"),
    "30B_A3B_lora": ("qwen3_vl_moe", "lora", "qwen3_vl_30b_a3b"),
}


def samples(merge: int) -> list[Any]:
    """The conversations of the micro-batch."""
    from rehearsal.work import Sample

    visual = [h * w // merge**2 for _, h, w in IMAGES]
    grids: list[list[tuple[int, int, int]]] = [[] for _ in range(DOCUMENTS)]
    total = number = 0
    while total + visual[number % len(IMAGES)] <= 0.47 * TOKENS:
        grids[number % DOCUMENTS].append(IMAGES[number % len(IMAGES)])
        total += visual[number % len(IMAGES)]
        number += 1
    size = TOKENS // DOCUMENTS
    lengths = [size + 17 * (i % 3) for i in range(DOCUMENTS)]
    lengths[-1] += TOKENS - sum(lengths)
    return [Sample(n, n // 4, tuple(g)) for n, g in zip(lengths, grids, strict=True)]


def measure(name: str, checkpointing: bool, layers: int | None = None) -> dict[str, Any]:
    """Seconds, useful operations and peak memory of the step of a config, uncompiled."""
    from rehearsal.step import rehearse
    from rehearsal.work import Case, build

    family, mode, builder = CONFIGS[name]
    towers = {"encoder": checkpointing and mode == "full", "decoder": checkpointing}
    case = Case(family, mode, builder=builder, layers=layers, checkpointing=towers)
    merge = build(replace(case, layers=1)).vision_encoder.merge
    found = rehearse(case, (samples(merge),))
    return {
        "ms": 1e3 * sum(found.seconds.values()),
        "optimizer_ms": 1e3 * found.optimizer_seconds,
        "peak_gb": found.peak / 1e9,
        "model_flops": found.model_flops,
        "by_kernel": {
            k: round(1e3 * v, 1) for k, v in sorted(found.seconds.items(), key=lambda x: -x[1])[:14]
        },
    }


def compiled(name: str) -> dict[str, float]:
    """Milliseconds that one decoder layer takes, uncompiled and compiled, and what it keeps in GB."""
    import torch
    from rehearsal.fusion import compiled_layer
    from rehearsal.graphs import inputs_of
    from rehearsal.machine import GPU, fake_gpu, gpu_answers
    from rehearsal.meter import Meter
    from rehearsal.work import Case, build, to_gpu

    family, mode, builder = CONFIGS[name]
    model = build(Case(family, mode, builder=builder, layers=1, checkpointing={}))
    layer, width = model.decoder.layers[0], model.decoder.tok_embeddings.weight.shape[1]
    lengths = [sample.tokens for sample in samples(model.vision_encoder.merge)]
    with fake_gpu({}):
        to_gpu(model, GPU)
        x, options = inputs_of(lengths, width, model.decoder.rotary, 3)
        with Meter({}) as meter:
            meter.segments = lengths
            with torch.autocast("cuda", torch.bfloat16):
                out = layer(x, **options)
            forward = sum(meter.totals.seconds.values())
            out.backward(torch.empty_like(out))
            both = sum(meter.totals.seconds.values())
    with gpu_answers({}):
        estimate = compiled_layer(layer, x, options, Meter({}))
    return {
        "eager_forward_ms": 1e3 * forward,
        "eager_backward_ms": 1e3 * (both - forward),
        "forward_ms": 1e3 * estimate.forward,
        "backward_ms": 1e3 * estimate.backward,
        "kept_gb": estimate.kept / 1e9,
        "layers": len(build(Case(family, mode, builder=builder, layers=None)).decoder.layers),
    }


def rows(name: str) -> list[dict[str, Any]]:
    """What each lever gives for a config; the optimizer's step is left out of the time, as it is shared."""
    found = [("layers recomputed", measure(name, True)), ("none recomputed", measure(name, False))]
    table = [{"config": name, "row": row, **figures} for row, figures in found]
    if not name.startswith("30B"):
        layer = compiled(name)
        n = layer["layers"]
        for row in list(table):
            again = layer["forward_ms"] - layer["eager_forward_ms"] if "layers" in row["row"] else 0.0
            once = layer["forward_ms"] + layer["backward_ms"]
            once -= layer["eager_forward_ms"] + layer["eager_backward_ms"]
            table.append(
                {
                    **row,
                    "row": row["row"] + ", compiled",
                    "ms": row["ms"] + n * (once + again),
                    "layer": layer,
                }
            )
    for row in table:
        step = (row["ms"] - row["optimizer_ms"]) / 1e3
        row["mfu"] = row["model_flops"] / step / 989e12
    return table


def main() -> None:
    """Print a table of the configs that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", default=list(CONFIGS), help=f"of {', '.join(CONFIGS)}")
    parser.add_argument("--json", action="store_true", help="everything that was found, by kernel")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        return _with_shims(sys.argv[1:])
    table = [row for name in arguments.configs for row in rows(name)]
    if arguments.json:
        return print(json.dumps(table, indent=1))
    print("| config | row | ms | MFU, encoder included | peak GB |\n|---|---|---|---|---|")
    for row in table:
        ms, peak = row["ms"] - row["optimizer_ms"], row["peak_gb"]
        peak_text = "" if "compiled" in row["row"] else f"{peak:.1f}"
        print(f"| {row['config']} | {row['row']} | {ms:.0f} | {100 * row['mfu']:.1f} % | {peak_text} |")


def _with_shims(words: list[str]) -> None:
    if reason := shim.missing():
        sys.exit(f"nothing to estimate: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        shim.build(Path(folder))
        done = shim.run(Path(folder), HERE, "--inside", *words)
    print(done.stdout, end="")
    if done.returncode:
        sys.exit(done.stderr[-3000:])


if __name__ == "__main__":
    main()
