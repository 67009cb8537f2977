"""A step of the recipe on fake CUDA tensors of real widths: images of mixed sizes, a clip, and text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rehearsal.run import GRAPHS
from rehearsal.work import DEFAULT, EVERY, Case

COMPILED = (Case("qwen3_vl", "lora"), Case("qwen2_5_vl", "full"))
CEILINGS = json.loads((Path(__file__).parent / "ceilings.json").read_text())
# Copied at the first use and kept: frequencies and axes of two rotary embeddings, mean and std of pixels.
ONCE = {"modules/rope.py:__call__ blocking": 4, "modules/vision/layers.py:_normalise blocking": 1}
UNITS = {"kernels": "kernels", "gigabytes": "GB read and written", "peak_gib": "GiB at the peak"}


def check(case: Case, found: dict[str, Any]) -> None:
    """What holds for every step.

    A fake tensor has no value, so whatever waits for one is an error; so is a CPU tensor among CUDA ones.
    """
    assert "error" not in found, found["error"]
    assert found["waits"] == ONCE, "the host waits for copies that are not pinned"
    assert set(found["attention"]) == {"varlen bfloat16"}
    assert set(found["experts"]) == ({"bfloat16"} if case.family.endswith("_moe") else set())
    assert found["without_gradient"] == []
    assert set(found["backends"]) == {"FLASH_ATTENTION"}


@pytest.fixture(scope="module")
def findings(rehearse: Callable[..., Any]) -> Any:
    return rehearse(*map(str, DEFAULT), *(GRAPHS + str(case) for case in COMPILED))


@pytest.mark.parametrize("case", DEFAULT, ids=str)
def test_step(case: Case, findings: dict[str, Any]) -> None:
    check(case, findings[str(case)])


@pytest.mark.parametrize("case", DEFAULT, ids=str)
def test_no_step_costs_more_than_before(case: Case, findings: dict[str, Any]) -> None:
    """To renew the table: python tests/helpers/rehearsal/ceilings.py"""
    if not torch.__version__.startswith(CEILINGS["torch"]):
        pytest.skip(f"the ceilings are those of torch {CEILINGS['torch']}")
    found, ceilings = findings[str(case)]["cost"], CEILINGS["cases"][str(case)]
    higher = [
        f"{found[name]} {unit}, the ceiling is {ceilings[name]}"
        for name, unit in UNITS.items()
        if found[name] > ceilings[name]
    ]
    assert not higher, f"{case}: " + "; ".join(higher)


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_a_compiled_layer_is_one_graph_for_all_batches(case: Case, findings: dict[str, Any]) -> None:
    """One of the encoder's and one of the decoder's, whatever the number and the lengths of segments."""
    assert findings[GRAPHS + str(case)] == {"graphs": 2, "breaks": {}}


@pytest.mark.campaign
def test_every_family_mode_and_place(rehearse: Callable[..., Any]) -> None:
    """CAMPAIGN=1 pytest tests/cuda_rehearsal"""
    for case, found in zip(EVERY, rehearse(*map(str, EVERY)).values(), strict=True):
        check(case, found)
