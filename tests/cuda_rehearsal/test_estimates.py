"""`tune-qwenvl estimate` against steps on the fake GPU, by one process or by one rank of many with FSDP."""

import json
from pathlib import Path

import pytest
from rehearsal import shim

PROGRAM = Path(__file__).resolve().parents[1] / "helpers" / "rehearsal" / "memory.py"
WITHIN = 0.1
# config, GPUs, overrides. `whole`: all layers, because with many gradients the depth decides which moment is
# the fullest.
CASES = (
    "qwen2_5_vl/7B_lora 1",
    "qwen2_5_vl/32B_lora 4",
    "qwen3_vl_moe/235B_A22B_lora 16",
    "qwen2_5_vl/3B_full 1 whole",
    "qwen2_vl/7B_qlora 1",
    "qwen3_vl/8B_lora 1",
    "qwen3_vl/8B_lora 1 activation_checkpointing.decoder=false",
    "qwen3_vl_moe/30B_A3B_lora 1",
    "glm4v/4.1V_9B_lora 1",
    "glm4v_moe/4.5V_lora 8",
    "qwen2_5_vl/3B_stage1 1 whole",
    "qwen2_5_vl/7B_full 8 whole",
    "glm4v/4.1V_9B_full 8 whole",
    "qwen3_vl_moe/30B_A3B_full 16 whole",
)


@pytest.mark.campaign
@pytest.mark.parametrize("case", CASES)
def test_estimates_agree_with_the_fake_gpu(case: str, shims: Path) -> None:
    """CAMPAIGN=1 pytest tests/cuda_rehearsal/test_estimates.py"""
    done = shim.run(shims, PROGRAM, *case.split())
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    print(found)
    assert found["estimated_gb"] == pytest.approx(found["measured_gb"], rel=WITHIN)
    assert found["estimated_ms"] == pytest.approx(found["measured_ms"], rel=WITHIN)
