"""Runs with odd settings that are taken: each ends with finite weights, or with an error for its user."""

import random
from pathlib import Path

import pytest
from faults.campaign import campaign_seed, campaign_size
from faults.odd_settings import TAKEN, keys
from launch import Run, run
from safetensors.torch import load_file
from tiny_run import write_run

# Folders of the run itself, what a CPU or this short a run cannot use, and values that would only take long.
LEFT_OUT = {
    *("output_dir", "checkpoint_dir", "base_dir", "tokenizer.folder", "metric_logger.log_dir", "collate_fn"),
    *("resume", "model", "dataset", "tokenizer.fps", "compile", "export_dtype", "device"),
}
LONG = {"epochs": {"1_000"}, "num_workers": {"1_000", "0x10"}, "model.lora_rank": {"1_000", "999999999"}}


def odd_runs(n: int) -> list[list[str]]:
    """n lists of one to three overrides, each of which is taken by itself."""
    rng = random.Random(campaign_seed())
    pairs = [
        (key, value)
        for key in keys("finetune")
        for value in sorted(TAKEN[key])
        if key not in LEFT_OUT and value not in LONG.get(key, ())
    ]
    return [[f"{key}={value}" for key, value in rng.sample(pairs, rng.choice([1, 2, 3]))] for _ in range(n)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def problem(done: Run) -> str | None:
    """What is wrong with the end of a run; None if nothing is."""
    if done.codes == [0]:
        if not (done.output_dir / "model").is_dir():
            return "ends well without a model"
        weights = load_file(done.output_dir / "model" / "model.safetensors")
        return None if all(w.isfinite().all() for w in weights.values()) else "weights that are not finite"
    last = done.printed.strip().splitlines()[-1]
    said = last.split(": ")[0].rpartition(".")[2] in ("ValueError", "BadSample", "SampleTooLong")
    return None if done.codes == [1] and said else f"{done.codes}: {last}"


def test_odd_settings_together(config: Path, tmp_path: Path) -> None:
    wrong = []
    for number, overrides in enumerate(odd_runs(campaign_size(1, 80))):
        done = run(tmp_path / str(number), *overrides, config=config)
        if found := problem(done):
            wrong.append((overrides, found, done.printed[-1_500:]))
    assert not wrong, "\n\n".join(map(str, wrong))
