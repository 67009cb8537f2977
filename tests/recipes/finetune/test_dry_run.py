"""A dry run predicts what the epoch takes, and writes nothing. Its times are checked by the benchmark."""

import json
import re
from pathlib import Path

import pytest
import tiny
from launch import run
from PIL import Image

# Activations of the largest batch outweigh all else that a process holds.
SIZES = {
    "text": {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4},
    "vision": {"hidden_size": 256, "out_hidden_size": 128, "intermediate_size": 1024, "depth": 2},
}
SIDES = (56, 112, 168, 224, 280, 784, 56, 112, 168, 224, 336, 392)


@pytest.fixture(scope="module")
def larger(config: Path) -> tuple[str, ...]:
    """Overrides for a model and images large enough to measure memory; one batch is much larger."""
    folder = config.parent / "larger"
    tiny.save_tiny_folder(folder / "checkpoint", **SIZES)
    rows = []
    for number, side in enumerate(SIDES):
        Image.new("RGB", (side, side), (20 * number, 90, 160)).save(folder / f"{number}.png")
        user = {"role": "user", "content": [{"type": "image", "path": f"{number}.png"}]}
        rows.append({"messages": [user, {"role": "assistant", "content": "so " * (2 + number)}]})
    (folder / "data.json").write_text(json.dumps(rows))
    data = (f"dataset.source={folder}/data.json", "tokenizer.max_pixels=614656", "max_steps_per_epoch=null")
    return (f"checkpoint_dir={folder}/checkpoint", *data)


def figures(printed: str) -> dict[str, list[float]]:
    """Each line of the forecast with its numbers."""
    lines = re.findall(r"^(largest batch|peak memory|seconds per step|tokens per step) +(.*)$", printed, re.M)
    return {name: [float(x.replace(",", "")) for x in re.findall(r"[\d.,]*\d", text)] for name, text in lines}


@pytest.mark.parametrize("processes", [1, 2])
def test_epoch_takes_what_was_predicted(
    config: Path, larger: tuple[str, ...], tmp_path: Path, processes: int
) -> None:
    overrides = (*larger, f"batch_size={2 // processes}", "gradient_accumulation_steps=2")
    dry = run(tmp_path / "dry", *overrides, "dry_run=true", config=config, processes=processes)
    assert set(dry.codes) == {0}, dry.printed
    assert not list((tmp_path / "dry").iterdir())
    predicted = figures(dry.printed)
    assert "dry run: 3 steps per epoch, no model was written" in dry.printed
    real = run(tmp_path / "real", *overrides, config=config, processes=processes)
    (peak,) = predicted["peak memory"]
    assert peak == pytest.approx(max(map(float, real.values("peak_memory_gib").values())), rel=0.1)
    # The image of 784 pixels, which a step without it would not have needed.
    assert predicted["largest batch"][1] >= 56 * 56
    if processes == 1:
        small = run(
            tmp_path / "small", *overrides, "tokenizer.max_pixels=50176", "dry_run=true", config=config
        )
        assert figures(small.printed)["peak memory"][0] < 0.8 * peak
    text, visual = predicted["tokens per step"]
    merged = [(side // 28) ** 2 for side in SIDES]
    assert visual == pytest.approx(sum(merged) / 3, abs=1)
    steps = real.values("tokens_per_second")
    total = sum(float(steps[s]) * float(real.values("seconds_per_step")[s]) for s in steps)
    assert text + visual == pytest.approx(total / 3, abs=1)


def test_packed_rows(config: Path, larger: tuple[str, ...], tmp_path: Path) -> None:
    dry = run(tmp_path / "dry", *larger, "pack_to=1024", "batch_size=1", "dry_run=true", config=config)
    assert dry.codes == [0], dry.printed
    assert 800 < figures(dry.printed)["largest batch"][0] <= 1024
