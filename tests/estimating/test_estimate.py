"""What `tune-qwenvl estimate` computes, against sums by hand and figures measured on fake tensors."""

import re

import pytest
from omegaconf import DictConfig

from torchtune_qwenvl.cli.main import main
from torchtune_qwenvl.estimating import estimate
from torchtune_qwenvl.estimating.cards import CARDS
from torchtune_qwenvl.estimating.report import advice, changed
from torchtune_qwenvl.estimating.workload import Mix, workload
from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.settings.files import PACKAGED

# Measured as in tests/cuda_rehearsal/test_estimates.py: GPUs, overrides, GB at the fullest moment, and the
# seconds of forward and backward pass on one H100.
MEASURED = {
    "qwen2_5_vl/7B_lora": (1, "", 20.95, 0.724),
    "qwen2_5_vl/3B_full": (1, "", 62.56, 0.569),
    "qwen2_5_vl/7B_full": (8, "", 25.11, None),
    "qwen2_5_vl/32B_lora": (4, "", 26.63, None),
    "qwen3_vl/8B_lora": (1, "activation_checkpointing.decoder=false", 67.32, 0.554),
    "qwen3_vl_moe/30B_A3B_lora": (1, "", 65.31, 0.477),
    "qwen3_vl_moe/30B_A3B_full": (16, "", 41.32, None),
    "qwen3_vl_moe/235B_A22B_lora": (16, "", 46.68, None),
    "glm4v/4.1V_9B_full": (8, "", 28.86, None),
    "glm4v_moe/4.5V_lora": (8, "", 45.60, None),
}
WITHIN = 0.1
COMMENT = re.compile(r"#   tune-qwenvl estimate (\S+) --gpus (\d+) --gpu (\S+) +([\d.]+) GB$", re.M)
CHECKED_ALWAYS = ("qwen2_5_vl/32B_lora", "qwen3_vl_moe/235B_A22B_lora")  # large models take seconds to build
COMMENTS = [
    pytest.param(
        *found, marks=[pytest.mark.campaign] * (found[0] not in CHECKED_ALWAYS), id=" ".join(found[:2])
    )
    for path in sorted(PACKAGED.rglob("*.yaml"))
    for found in COMMENT.findall(path.read_text())
]


@pytest.mark.parametrize("name", MEASURED)
def test_agrees_with_what_was_measured(name: str) -> None:
    gpus, words, gigabytes, seconds = MEASURED[name]
    found = estimate(resolve(name, words.split()), gpus)
    assert found.memory.total / 1e9 == pytest.approx(gigabytes, rel=WITHIN)
    if seconds is not None:
        assert found.time.computing == pytest.approx(seconds, rel=WITHIN)


@pytest.mark.parametrize(("name", "gpus", "gpu", "gigabytes"), COMMENTS)
def test_comments_of_the_configs_are_true(name: str, gpus: str, gpu: str, gigabytes: str) -> None:
    found = estimate(resolve(name), int(gpus), gpu)
    assert found.memory.total / 1e9 == pytest.approx(float(gigabytes), abs=0.06)
    assert found.fits


def test_every_figure_in_a_config_is_such_a_comment() -> None:
    texts = [path.read_text() for path in PACKAGED.rglob("*.yaml")]
    assert sum(text.count(" GB") for text in texts) == len(COMMENTS)


@pytest.fixture(scope="module")
def lora() -> DictConfig:
    return resolve("qwen2_5_vl/3B_lora")


def test_weights_and_optimizer_are_counted_by_hand(lora: DictConfig) -> None:
    """3,754,622,976 frozen values in bf16, vectors in fp32; LoRA of rank 16 in fp32 with two moments."""
    found = estimate(lora)
    adapters = 36 * 16 * (3 * 2 * 2048 + 2 * (2048 + 256) + 3 * (2048 + 11008))
    assert found.trained == pytest.approx(adapters, rel=0.1)
    assert found.parameters == 3_754_622_976 + found.trained
    assert found.memory.optimizer == 8 * found.trained
    assert found.memory.weights == pytest.approx(2 * 3_754_622_976 + 4 * found.trained, rel=2e-3)


def test_four_gpus_share_weights_and_optimizer(lora: DictConfig) -> None:
    one, four = estimate(lora), estimate(lora, 4)
    assert four.memory.weights == pytest.approx(one.memory.weights / 4)
    assert four.memory.optimizer == pytest.approx(one.memory.optimizer / 4)
    assert four.memory.gathered > 0
    assert four.time.transferring > 0 == one.time.transferring


def test_accumulation_keeps_the_gradients_during_the_next_batch() -> None:
    plain = estimate(resolve("qwen2_5_vl/3B_stage1", ["pack_to=16384"]))
    more = estimate(resolve("qwen2_5_vl/3B_stage1", ["pack_to=16384", "gradient_accumulation_steps=4"]))
    assert more.memory.gradients == 4 * more.trained > plain.memory.gradients
    assert more.time.step > 3.9 * plain.time.computing


def test_longer_rows_need_more_and_recomputing_needs_less(lora: DictConfig) -> None:
    shares = [estimate(changed(lora, f"activation_checkpointing.decoder={s}")) for s in (0, 0.5, 1)]
    assert [one.memory.total for one in shares] == sorted((one.memory.total for one in shares), reverse=True)
    assert [one.time.computing for one in shares] == sorted(one.time.computing for one in shares)
    assert estimate(changed(lora, "pack_to=16384")).memory.total > shares[-1].memory.total


def test_what_does_not_fit_gets_advice_that_does() -> None:
    cfg = resolve("qwen2_5_vl/7B_full")
    found = estimate(cfg)
    assert not found.fits
    assert re.search(r"--gpus 2 +[\d.]+ GB, fits", advice(cfg, found, "h100", Mix()))


def test_memory_that_is_left_is_used_to_recompute_less(lora: DictConfig) -> None:
    assert "activation_checkpointing.decoder=0 " in advice(lora, estimate(lora), "h100", Mix())
    small = advice(lora, estimate(lora, gpu="rtx4090"), "rtx4090", Mix())
    share = re.search(r"decoder=(0\.\d+) .* fits", small)
    assert share is not None and 0 < float(share[1]) < 1


def test_the_command_fails_if_it_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    main(["estimate", "qwen2_5_vl/3B_lora", "pack_to=4096"])
    out = capsys.readouterr().out
    assert "4,096 tokens" in out and "of 80: fits" in out and "MFU" in out
    with pytest.raises(SystemExit) as failed:
        main(["estimate", "qwen2_5_vl/3B_full", "--gpu", "l40s"])
    assert failed.value.code == 1
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qwen2_5_vl/3B_lora", "--gpu", "h10"], "no GPU 'h10'.*h100"),
        (["qwen2_5_vl/3B_lora", "--gpus", "0"], "--gpus: expected at least 1, got 0"),
        (["qwen2_5_vl/3B_lora", "--visual", "1.5"], "--visual: expected a share from 0 to 1, got 1.5"),
        (["qwen2_5_vl/3B_lora", "dtype=fp32"], "expected dtype: bf16, got fp32"),
        (["vit/digits"], "expected a config of finetune, got one of train_vit"),
        (["base"], "the config has no model"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["estimate", *words])


def test_a_workload_has_the_shares_that_were_asked_for() -> None:
    work = workload(8192, 2, Mix())
    assert (work.tokens, len(work.samples)) == (8192, 8)
    assert work.visual / work.tokens == pytest.approx(0.47, abs=0.06)
    assert work.labelled / work.tokens == pytest.approx(0.25, abs=0.01)
    assert workload(100, 2, Mix(visual=0)).grids == []


def test_every_card_is_described_whole() -> None:
    for card in CARDS.values():
        assert card.peak > card.fp32 > card.bandwidth > card.total > card.link / 100
