"""Measure what `tune-qwenvl estimate` computes: a step of a config on the fake GPU, its widths, two depths.

python tests/helpers/rehearsal/memory.py qwen2_5_vl/7B_lora 8 pack_to=4096

Prints a JSON object: measured peak bytes and seconds, extrapolated to the full depth, and their estimates.
`whole` among the overrides measures all layers instead.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rehearsal.ranks import pass_of_a_rank
from rehearsal.step import rehearse_model
from rehearsal.work import cut, sample_of
from torchtune_qwenvl.estimating import estimate
from torchtune_qwenvl.estimating.model import build
from torchtune_qwenvl.estimating.workload import Mix, tokens_of, workload
from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.training.step.batches import collate_for

PROGRAM = Path(__file__).resolve()
# Their time is that of the link between GPUs, not of memory.
TRANSFERS = ("all_gather_copy_in", "_allgather_base_", "_reduce_scatter_base_")
DEPTHS = ((2, 2), (4, 2), (2, 4))  # layers of decoder and encoder


def measured(cfg: Any, gpus: int, depth: tuple[int, int] | None) -> tuple[float, float]:
    """Peak bytes and seconds of one forward and backward pass; `depth`: layers of decoder and encoder."""
    model = build(cfg)
    if depth is not None:
        cut(model, *depth)
    work = workload(tokens_of(cfg), model.vision_encoder.merge, Mix())
    if gpus == 1:
        found = rehearse_model(model, (work.samples,))
        return found.peak, sum(found.seconds.values()) - found.optimizer_seconds
    inputs = collate_for(model, True)([sample_of(model, sample) for sample in work.samples])
    meter = pass_of_a_rank(model, inputs, gpus, optimizer=2.0)
    return meter.peak, sum(t for name, t in meter.totals.seconds.items() if name not in TRANSFERS)


def extrapolated(cfg: Any, gpus: int) -> tuple[float, float]:
    """Both figures at the full depth: they grow evenly with the layers of each tower."""
    model = build(cfg)
    decoder, encoder = len(model.decoder.layers), len(model.vision_encoder.layers)
    base, deeper, wider = (measured(cfg, gpus, depth) for depth in DEPTHS)
    return tuple(  # type: ignore[return-value]
        b + (d - b) / 2 * (decoder - 2) + (w - b) / 2 * (encoder - 2)
        for b, d, w in zip(base, deeper, wider, strict=True)
    )


def main(words: Sequence[str]) -> None:
    """Print measured and estimated figures of a config, on so many GPUs, with these overrides."""
    name, gpus, *overrides = words
    whole = "whole" in overrides
    overrides = [word for word in overrides if word != "whole"]
    cfg = resolve(name, overrides)
    peak, seconds = measured(cfg, int(gpus), None) if whole else extrapolated(cfg, int(gpus))
    found = estimate(cfg, int(gpus), "h100")
    json.dump(
        {
            "config": name,
            "gpus": int(gpus),
            "overrides": overrides,
            "measured_gb": peak / 1e9,
            "estimated_gb": found.memory.total / 1e9,
            "measured_ms": 1e3 * seconds,
            "estimated_ms": 1e3 * found.time.computing,
            "parts": {name: round(part / 1e9, 2) for name, part in found.memory.parts.items()},
            "moment": found.memory.moment,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
