"""Packed and padding-free training through the recipe: the padded run's losses, ranks, skips and resume."""

import json
import re
from pathlib import Path

import pytest
from launch import LORA, Run, run
from omegaconf import OmegaConf

# All 16 samples in one step, so that their order does not count.
ONE_STEP = ("shuffle=false", "max_steps_per_epoch=1", "epochs=2")
PACKED = (
    *LORA,
    "pack_to=120",
    "batch_size=1",
    "epochs=2",
    "max_steps_per_epoch=null",
    "num_workers=1",
    "save_every_n_steps=2",
    "gradient_accumulation_steps=2",
)


def losses(finished: Run) -> list[float]:
    assert set(finished.codes) == {0}, finished.printed
    return [float(value) for value in finished.values("loss").values()]


def test_padded_padding_free_and_packed_runs_learn_the_same(config: Path, tmp_path: Path) -> None:
    padded = losses(run(tmp_path / "a", *ONE_STEP, "batch_size=16", config=config))
    free = losses(run(tmp_path / "b", *ONE_STEP, "batch_size=16", "padding_free=true", config=config))
    packed = run(tmp_path / "c", *ONE_STEP, "batch_size=20", "pack_to=120", config=config)
    asked = (f"val_dataset.source={config.parent / 'data.json'}", "run_val_every_n_steps=2", "val_answers=3")
    overrides = (*ONE_STEP, "batch_size=10", "pack_to=120", *asked)
    ranks = run(tmp_path / "d", *overrides, config=config, processes=2)
    budget = ("batch_tokens=200", "gradient_accumulation_steps=16")
    like_lengths = run(tmp_path / "e", *ONE_STEP, *budget, config=config)
    assert losses(like_lengths) == pytest.approx(padded, rel=1e-5)
    assert re.search(r"16 samples packed into \d+ batches of at most 200 tokens", like_lengths.printed)
    assert len(padded) == 2 and padded[1] < padded[0]
    assert free == pytest.approx(padded, rel=1e-5)
    assert losses(packed) == pytest.approx(padded, rel=1e-5)
    assert losses(ranks) == pytest.approx(padded, rel=1e-5)
    assert "16 samples packed into" in packed.printed
    assert len(re.findall(r"  \d  .*What is in image .*\n     expected  I see ", ranks.printed)) == 2
    assert (tmp_path / "d/answers/step_2.png").is_file()


@pytest.fixture(scope="module")
def mixed(config: Path) -> tuple[str, ...]:
    """PACKED over two parts of the data; the first part is repeated, to twice as many samples."""
    data = config.parent / "data.json"
    entry = "{{weight: {}, label: {}, source: " + str(data) + ", split: 'train[{}]'}}"
    members = f"{entry.format(2 / 3, 'small', ':6')}, {entry.format(1 / 3, 'large', '6:')}"
    mix = "{_component_: torchtune_qwenvl.data.mixed_dataset, stopping_strategy: all_exhausted, datasets: "
    return (*PACKED, f"dataset={mix}[{members}]}}", "~dataset.source")


@pytest.fixture(scope="module")
def reference(mixed: tuple[str, ...], config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A mixed and packed run of two shuffled epochs on two processes, without interruption."""
    finished = run(tmp_path_factory.mktemp("packed") / "out", *mixed, config=config, processes=2)
    assert len(losses(finished)) == 16  # in two epochs: step 12 is in the middle of the second
    assert finished.values("drawn_small")[16] == "40.0" and finished.values("drawn_large")[16] == "20.0"
    return finished


def test_killed_in_the_second_epoch_and_resumed_to_the_last_bit(
    reference: Run, mixed: tuple[str, ...], config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed = run(out, *mixed, config=config, processes=2, kill_at="step 13")
    assert -9 in killed.codes
    resumed = run(out, *mixed, "resume=true", config=config, processes=2)
    assert resumed.values("loss") == reference.values("loss"), resumed.printed
    assert len(list((out / "lengths").iterdir())) == 1  # which the resumed run found again
    file = "model/model.safetensors"
    assert (out / file).read_bytes() == (reference.output_dir / file).read_bytes()


def test_another_pack_to_goes_on_and_is_named(
    reference: Run, mixed: tuple[str, ...], config: Path, tmp_path: Path
) -> None:
    saved = reference.output_dir / "step_14"
    other = run(tmp_path / "out", *mixed, "pack_to=260", f"resume={saved}", config=config, processes=2)
    assert set(other.codes) == {0}, other.printed
    assert re.search(r"resumed from .*step_14.*pack_to", other.printed, re.DOTALL), other.printed
    assert min(other.values("loss")) == 15


def test_bad_and_long_samples_are_counted(config: Path, tmp_path: Path) -> None:
    rows = json.loads((config.parent / "data.json").read_text())[1::2]
    long = {"role": "assistant", "content": "long " * 200}
    rows += [{"messages": []}, {"messages": [rows[0]["messages"][0], long]}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    cfg = OmegaConf.load(config)
    cfg.dataset.source = str(tmp_path / "data.json")
    OmegaConf.save(cfg, tmp_path / "run.yaml")
    overrides = ("max_steps_per_epoch=null", "tokenizer.max_seq_len=120", "pack_to=120")
    strict = run(tmp_path / "a", *overrides, config=tmp_path / "run.yaml")
    assert strict.codes == [1] and re.search(r"data\.json, sample 8 ", strict.printed), strict.printed
    overrides = (*overrides, "on_bad_sample=skip", "on_too_long=skip")
    finished = run(tmp_path / "b", *overrides, config=tmp_path / "run.yaml")
    assert losses(finished)
    assert float(list(finished.values("skipped_samples").values())[-1]) == 2


def test_a_row_shorter_than_a_sample_is_refused(config: Path, tmp_path: Path) -> None:
    failed = run(tmp_path / "out", "pack_to=20", config=config)
    assert failed.codes == [1] and "a row takes pack_to = 20: raise pack_to" in failed.printed
