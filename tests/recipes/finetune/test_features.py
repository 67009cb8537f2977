"""`cache_features` through the recipe: a run that finds all features learns the same, bit for bit."""

import json
import re
from pathlib import Path

import pytest
from launch import Run, command, run

FROZEN = ("model.encoder_trainable=frozen", "model.fusion_trainable=frozen")
LORA = (
    *FROZEN,
    "model.decoder_trainable=lora",
    "model.lora_attn_modules=[q_proj,v_proj]",
    "model.lora_rank=4",
    "model.lora_alpha=8",
    "model.lora_dropout=0.1",
)
# Two epochs of 16 conversations, 8 of them with an image.
PACKED = (*LORA, "pack_to=120", "epochs=2", "max_steps_per_epoch=null", "num_workers=1", "dtype=bf16")


def cached(folder: Path) -> tuple[str, str]:
    return "cache_features=true", f"feature_cache_dir={folder}"


def counts(finished: Run) -> tuple[int, int]:
    """How many images were encoded in the run, and how many were known."""
    assert set(finished.codes) == {0}, finished.printed
    (found,) = re.findall(r"features: (\d+) .* encoded here, (\d+) were known", finished.printed)
    return int(found[0]), int(found[1])


@pytest.fixture(scope="module")
def validated(config: Path) -> tuple[str, ...]:
    asked = (f"val_dataset.source={config.parent / 'data.json'}", "run_val_every_n_steps=2", "val_answers=1")
    return (*PACKED, *asked, "save_every_n_steps=2")


def test_killed_resumed_and_found_by_another_run(
    config: Path, validated: tuple[str, ...], tmp_path: Path
) -> None:
    kept, out = tmp_path / "kept", tmp_path / "out"
    killed = run(out, *validated, *cached(kept), config=config, kill_at="step 4")
    assert killed.codes == [-9]
    resumed = run(out, *validated, *cached(kept), "resume=true", config=config)
    encoded, known = counts(resumed)
    assert encoded < 8 < known
    argv = ["--config", str(config), "device=cpu", f"output_dir={tmp_path / 'warm'}"]
    code, printed = command(
        tmp_path / "printed.txt",
        ["run", "torchtune_qwenvl/recipes/finetune.py", *argv, *validated, *cached(kept)],
    )
    warm = Run([code], printed, tmp_path / "warm")
    encoded, known = counts(warm)
    assert encoded == 0 and known >= 16
    assert "features of 8 images and videos are known" in printed
    for metric in ("loss", "val_loss", "grad_norm"):
        assert warm.values(metric) == resumed.values(metric) != {}
    adapter = "adapter/adapter_model.safetensors"
    assert (warm.output_dir / adapter).read_bytes() == (out / adapter).read_bytes()


def test_two_ranks_one_of_which_has_no_images(config: Path, tmp_path: Path) -> None:
    """The rank with images encodes alone; the step is that of one process."""
    step = (
        *FROZEN,
        "shuffle=false",
        "max_steps_per_epoch=1",
        "save_every_n_steps=1",
        *cached(tmp_path / "kept"),
    )
    two = run(tmp_path / "two", *step, "batch_size=4", config=config, processes=2)
    assert counts(two)[0] == 4
    one = run(tmp_path / "one", *step, "batch_size=8", config=config)
    assert counts(one) == (0, 4)
    for metric in ("loss", "grad_norm"):
        (first,), (second,) = one.values(metric).values(), two.values(metric).values()
        assert float(first) == pytest.approx(float(second), rel=1e-5)


def test_a_stream_encodes_in_its_first_epoch_only(config: Path, tmp_path: Path) -> None:
    lines = tmp_path / "data.jsonl"
    rows = json.loads((config.parent / "data.json").read_text())
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for png in config.parent.glob("*.png"):
        (tmp_path / png.name).symlink_to(png)
    streamed = ("dataset.streaming=true", f"dataset.source={lines}", "max_steps_per_epoch=6")
    overrides = (*PACKED, *streamed, "batch_size=4", *cached(tmp_path / "kept"))
    finished = run(tmp_path / "out", *overrides, config=config)
    assert counts(finished) == (8, 8)


def test_a_dry_run_writes_nothing(config: Path, tmp_path: Path) -> None:
    finished = run(tmp_path / "out", *FROZEN, *cached(tmp_path / "kept"), "dry_run=true", config=config)
    assert set(finished.codes) == {0} and not (tmp_path / "kept").exists()
