"""Streams through the recipe: killed and resumed to the last bit, ends, and what breaks."""

import json
from pathlib import Path

import datasets
import pytest
from launch import LORA, Run, run

# A window of 64 rows ends with step 16, in the middle of the second epoch.
STREAMED = (
    *LORA,
    "pack_to=120",
    "batch_size=4",
    "epochs=2",
    "max_steps_per_epoch=10",
    "num_workers=2",
    "save_every_n_steps=4",
    "shuffle_buffer=50",
)


@pytest.fixture(scope="module")
def sources(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Lines with and without images, a parquet file, and broken lines."""
    folder = tmp_path_factory.mktemp("streams")
    rows = json.loads((config.parent / "data.json").read_text())
    for png in config.parent.glob("*.png"):
        (folder / png.name).symlink_to(png)
    qa = {
        "question": [f"How much is {i}?" for i in range(400)],
        "answer": [f"{i}." * (i % 7) for i in range(400)],
    }
    qa["answer"] = [answer or "none" for answer in qa["answer"]]
    datasets.Dataset.from_dict(qa).to_parquet(folder / "table.parquet")
    lines = {"long": rows * 12, "short": rows[:7], "broken": rows[:7]}
    for name, records in lines.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text[:-30] if name == "broken" else text)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def mixed(config: Path, sources: dict[str, Path]) -> tuple[str, ...]:
    """STREAMED over a mix of lines, a table and an indexed dataset."""
    members = (
        f"{{weight: 0.5, label: lines, streaming: true, source: {sources['long']}}}, "
        f"{{weight: 0.25, label: table, streaming: true, source: {sources['table']}}}, "
        f"{{weight: 0.25, label: numbered, source: {config.parent / 'data.json'}}}"
    )
    mix = "{_component_: torchtune_qwenvl.data.mixed_dataset, stopping_strategy: all_exhausted, datasets: "
    return (*STREAMED, f"dataset={mix}[{members}]}}", "~dataset.source")


def test_mixed_packed_shuffled_streamed_killed_and_resumed_to_the_last_bit(
    mixed: tuple[str, ...], config: Path, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", *mixed, config=config, processes=2)
    assert set(whole.codes) == {0}, whole.printed
    losses = whole.values("loss")
    assert len(losses) == 20 and len(set(losses.values())) == 20
    drawn = [float(whole.values(f"drawn_{name}")[20]) for name in ("lines", "table", "numbered")]
    assert [count / sum(drawn) for count in drawn] == pytest.approx([0.5, 0.25, 0.25], abs=0.1)
    killed = run(tmp_path / "out", *mixed, config=config, processes=2, kill_at="step 14")
    assert -9 in killed.codes and (tmp_path / "out" / "step_12").exists()
    resumed = run(tmp_path / "out", *mixed, "resume=true", config=config, processes=2)
    assert resumed.values("loss") == losses, resumed.printed
    file = "model/model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (whole.output_dir / file).read_bytes()
    # Samples that were buffered before the run stopped have to fit the new rows too.
    fewer = run(
        tmp_path / "new", *mixed, f"resume={tmp_path}/out/step_16", "pack_to=90", config=config, processes=2
    )
    assert 1 in fewer.codes and "a row takes pack_to = 90: raise pack_to" in fewer.printed


def streamed(source: Path) -> tuple[str, ...]:
    return (
        f"dataset.source={source}",
        "dataset.streaming=true",
        "max_steps_per_epoch=50",
        "save_every_n_steps=50",
    )


def saved_and_resumed(finished: Run, config: Path, *overrides: str) -> Run:
    last = max(int(path.name.removeprefix("step_")) for path in finished.output_dir.glob("step_*"))
    out = finished.output_dir.parent / "more"
    return run(out, *overrides, f"resume={finished.output_dir}/step_{last}", config=config, processes=2)


def test_a_stream_that_ends_early_ends_the_epoch_on_all_ranks(
    sources: dict[str, Path], config: Path, tmp_path: Path
) -> None:
    """Rank 0 has four samples, rank 1 three: both take four steps in each epoch, also if resumed."""
    overrides = (*streamed(sources["short"]), "batch_size=1", "num_workers=1")
    finished = run(tmp_path / "out", *overrides, "epochs=2", config=config, processes=2)
    assert set(finished.codes) == {0}, finished.printed
    assert list(finished.values("loss")) == list(range(1, 9))
    for epoch in (0, 1):
        assert (
            f"epoch {epoch}: the stream ended after 4 of 50 steps (max_steps_per_epoch)" in finished.printed
        )
    more = saved_and_resumed(finished, config, *overrides, "epochs=3")
    assert set(more.codes) == {0} and list(more.values("loss")) == [9, 10, 11, 12], more.printed


def test_what_breaks_and_what_does_not_fit(sources: dict[str, Path], config: Path, tmp_path: Path) -> None:
    overrides = streamed(sources["broken"])
    strict = run(tmp_path / "a", *overrides, config=config)
    assert strict.codes == [1] and f"{sources['broken']}, line 7: not valid JSON" in strict.printed
    skipping = run(tmp_path / "b", *overrides, "on_bad_sample=skip", config=config)
    assert skipping.codes == [0] and list(skipping.values("skipped_samples").values())[-1] == "1.0"
    endless = run(tmp_path / "c", *overrides, "max_steps_per_epoch=null", config=config)
    assert endless.codes == [1] and "has no length: set max_steps_per_epoch" in endless.printed
    val = (f"val_dataset.source={sources['short']}", "val_dataset.streaming=true")
    judged = run(tmp_path / "d", *overrides, *val, config=config)
    assert (
        judged.codes == [1]
        and "val_dataset: expected a dataset of known length, got a stream" in judged.printed
    )
