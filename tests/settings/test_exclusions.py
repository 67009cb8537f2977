"""Two settings that exclude each other are an error with its reason; each setting alone is allowed."""

import pytest
from omegaconf import DictConfig

from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.settings.exclusions import EXCLUSIONS, check_exclusions

# For each row of the table: the overrides of both settings. Each of them is allowed without the other.
PAIRS = [
    ("optimizer_in_bwd=true", "gradient_accumulation_steps=2"),
    ("optimizer_in_bwd=true", "clip_grad_norm=1.0"),
    ("optimizer_in_bwd=true", "learning_rates.encoder=0.1"),
    ("activation_offloading=true", "activation_checkpointing.encoder=false"),
    ("optimizer=torchao.optim._AdamW optimizer.bf16_stochastic_round=true", "dtype=fp32"),
    ("batch_tokens=4096", "pack_to=8192"),
    ("optimizer_in_bwd=true", "on_nonfinite=skip"),
]


NEUTRAL = ("activation_checkpointing.decoder=false", "clip_grad_norm=null", "pack_to=null")


def config(*pairs: str) -> DictConfig:
    return resolve("qwen2_5_vl/3B_lora", [*NEUTRAL, *" ".join(pairs).split()])


@pytest.mark.parametrize("row", range(len(EXCLUSIONS)))
def test_row(row: int) -> None:
    pair = EXCLUSIONS[row]
    check_exclusions(config("activation_checkpointing.encoder=true", PAIRS[row][0]))
    check_exclusions(config(PAIRS[row][1]))
    with pytest.raises(ValueError) as error:
        check_exclusions(config(*PAIRS[row]))
    _, reason = str(error.value).split("\n")
    assert reason == f"{pair.settings}: {pair.reason}"


def test_all_are_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"accumulation(.|\n)*clip_grad_norm(.|\n)*rates"):
        check_exclusions(config(*PAIRS[0], PAIRS[1][1], PAIRS[2][1]))
