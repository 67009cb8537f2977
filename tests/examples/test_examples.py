"""Every program in examples/ runs, on a tiny folder, as its docstring says."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import tiny
import torch
from launch import Run, command, run

from torchtune_qwenvl import load_model, load_transform

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CONFIG = """\
checkpoint_dir: {folder}/checkpoint
dtype: fp32
num_workers: 0
batch_size: 2
max_steps_per_epoch: 2
optimizer: {{lr: 1.0e-3}}
model:
  _component_: torchtune_qwenvl.models.qwen2_5_vl.qwen2_5_vl_from_config
  config: ${{checkpoint_dir}}
dataset: {{source: {folder}/data.jsonl}}
metric_logger: {{filename: log.txt}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint/, four images with questions, answers and captions, and a config."""
    folder = tmp_path_factory.mktemp("examples")
    tiny.save_tiny_folder(folder / "checkpoint")
    rows, asked = [], []
    for i in range(4):
        tiny.photo(56, 84, seed=i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"Picture number {i}.")
        rows.append({"image": f"{i}.png", "question": "What is it?", "answer": f"I see {i}."})
        asked.append({"image": f"{i}.png", "question": "What is it?", "keyword": ""})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finetune(folder: Path, out: Path, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The recipe, started in examples/ as the docstrings say."""
    monkeypatch.chdir(EXAMPLES)
    done = run(out, *overrides, config=folder / "run.yaml")
    assert done.codes == [0], done.printed
    return done


def figures(done: Run, name: str) -> list[float]:
    """What a run has logged under a name, step by step."""
    return [float(value) for value in done.values(name).values()]


def test_training_loop(folder: Path, tmp_path: Path) -> None:
    losses = load("training_loop").main(
        str(folder / "checkpoint"), str(folder / "data.jsonl"), str(tmp_path / "out")
    )
    assert len(losses) == 2
    before, after = load_model(folder / "checkpoint"), load_model(tmp_path / "out")
    moved = {
        name for name, weight in after.named_parameters() if not weight.equal(before.get_parameter(name))
    }
    assert moved and all(".q_proj." in name or ".v_proj." in name for name in moved)
    assert all(name.startswith("decoder.") for name in moved)


def test_training_loop_is_short() -> None:
    assert len((EXAMPLES / "training_loop.py").read_text().splitlines()) <= 60


def test_custom_dataset(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = load_transform(folder / "checkpoint")
    dataset = load("custom_dataset").caption_folder(transform, folder=str(folder))
    sample = dataset[2]
    said = [token for token, masked in zip(sample["tokens"], sample["mask"], strict=True) if not masked]
    assert transform.decode(said).startswith("Picture number 2.")
    assert dataset.size(2).tokens == len(sample["tokens"])
    overrides = ("dataset=custom_dataset.caption_folder", f"dataset.folder={folder}", "pack_to=256")
    assert finetune(folder, tmp_path / "out", "~dataset.source", *overrides, monkeypatch=monkeypatch).values(
        "loss"
    )


def test_custom_dataset_names_a_missing_caption(folder: Path, tmp_path: Path) -> None:
    tiny.photo(28, 28).save(tmp_path / "alone.png")
    dataset = load("custom_dataset").caption_folder(
        load_transform(folder / "checkpoint"), folder=str(tmp_path)
    )
    with pytest.raises(ValueError, match=r"alone\.txt"):
        dataset[0]


def test_custom_evaluation(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    component = "{_component_: custom_evaluation.keyword_accuracy, data: %s}" % (folder / "questions.jsonl")
    overrides = (f"evaluate=[{component}]", "run_val_every_n_steps=1")
    done = finetune(folder, tmp_path / "out", *overrides, monkeypatch=monkeypatch)
    # Every text contains the empty keyword.
    assert {step: float(value) for step, value in done.values("keyword_accuracy").items()} == {1: 1.0, 2: 1.0}


def test_custom_step(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = finetune(folder, tmp_path / "plain", "max_steps_per_epoch=1", monkeypatch=monkeypatch)
    arguments = ["--config", str(folder / "run.yaml"), "device=cpu", "max_steps_per_epoch=1"]
    argv = ["run", "custom_step.py", *arguments, f"output_dir={tmp_path / 'averaged'}"]
    code, printed = command(tmp_path / "printed.txt", argv)
    assert code == 0, printed
    start = load_model(folder / "checkpoint")
    last = dict(load_model(plain.output_dir / "model").named_parameters())
    for name, weight in load_model(tmp_path / "averaged" / "model").named_parameters():
        torch.testing.assert_close(weight, 0.99 * start.get_parameter(name) + 0.01 * last[name])


def test_custom_loss(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gamma 0 is the built-in cross-entropy; 2 counts less, at validations too."""
    val = (f"val_dataset.source={folder}/data.jsonl", "run_val_every_n_steps=1", "val_answers=0")
    plain = finetune(folder, tmp_path / "plain", *val, monkeypatch=monkeypatch)
    same = ("loss=custom_loss.focal_loss", "loss.gamma=0.0", *val)
    one = finetune(folder, tmp_path / "same", *same, monkeypatch=monkeypatch)
    focal = finetune(folder, tmp_path / "focal", "loss=custom_loss.focal_loss", *val, monkeypatch=monkeypatch)
    for name in ("loss", "val_loss"):
        wanted, found, less = (figures(done, name) for done in (plain, one, focal))
        assert wanted and found == pytest.approx(wanted, rel=1e-5)
        assert less[0] < wanted[0]
    dry = finetune(
        folder, tmp_path / "dry", "loss=custom_loss.focal_loss", "dry_run=true", monkeypatch=monkeypatch
    )
    assert "dry run: 2 steps per epoch" in dry.printed


def test_custom_collate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding changes nothing that is learnt."""
    plain = finetune(folder, tmp_path / "plain", monkeypatch=monkeypatch)
    own = "collate_fn=custom_collate.to_multiples"
    padded = finetune(folder, tmp_path / "padded", own, monkeypatch=monkeypatch)
    assert figures(padded, "loss") == pytest.approx(figures(plain, "loss"), rel=1e-5)
    monkeypatch.chdir(EXAMPLES)
    refused = run(tmp_path / "packed", own, "padding_free=true", config=folder / "run.yaml")
    assert refused.codes != [0] and "to_multiples has no argument padding_free" in refused.printed
