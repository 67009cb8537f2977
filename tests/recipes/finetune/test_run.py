"""The recipe from the command line to the folders that it writes, and its errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import LORA, run
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from torchtune.config import instantiate

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.settings.config import resolve

RECIPE = "torchtune_qwenvl/recipes/finetune.py"
VALIDATION = ("val_dataset=torchtune_qwenvl.data.vision_chat_dataset", "run_val_every_n_steps=3")


# A recipe, a loss and a collate function as a user writes them, in a folder of the user's.
OWN = """\
import torch.nn.functional as F

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.recipes.finetune import FinetuneRecipe, main


def weighted(weight):
    return lambda logits, targets: weight * F.cross_entropy(logits.float(), targets, reduction="none")


def reversed_rows(samples, padding_idx, ignore_idx, padding_free=False):
    return collate(samples[::-1], padding_idx, ignore_idx, padding_free=padding_free)


class MyRecipe(FinetuneRecipe):
    def step(self, batches):
        step = super().step(batches)
        print(f"rank {self.world.rank} stepped with {len(batches)} batches")
        return step


if __name__ == "__main__":
    main(recipe=MyRecipe)
"""


def tune_run(config: Path, out: Path, *overrides: str, recipe: tuple[str, ...] = (RECIPE,)) -> str:
    """`tune run FILE`, torchtune's own command."""
    return started([str(Path(sys.executable).with_name("tune")), "run", *recipe], config, out, *overrides)


def tune_qwenvl_run(config: Path, out: Path, *overrides: str, processes: int) -> str:
    """`tune-qwenvl run finetune`, as its console script starts it."""
    command = [sys.executable, "-m", "torchtune_qwenvl.cli.main", "run", "--nproc_per_node", str(processes)]
    return started([*command, "finetune"], config, out, *overrides)


def started(command: list[str], config: Path, out: Path, *overrides: str) -> str:
    command = [*command, "--config", str(config), "device=cpu", f"output_dir={out}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=out.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metric(out: Path, name: str) -> dict[int, float]:
    text = (out / "logs" / "log.txt").read_text()
    return {int(s): float(v) for s, v in re.findall(rf"^Step (\d+) \|.*?\b{name}:(\S+)", text, re.M)}


def first_loss(config: Path, batch_size: int) -> float:
    """The loss of the first samples, computed without the recipe."""
    cfg = resolve(str(config))
    transform = load_transform(cfg.checkpoint_dir, dtype="uint8")
    dataset = instantiate(cfg.dataset, transform)
    batch = collate([dataset[i] for i in range(batch_size)], padding_idx=transform.pad_id)
    with torch.no_grad():
        loss_sum, n = load_model(cfg.checkpoint_dir)(**batch)
    return (loss_sum / n).item()


def test_tune_run_one_process(config: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "out", config.parent / "data.json"
    overrides = ("shuffle=false", *VALIDATION, f"val_dataset.source={source}", "learning_rates.encoder=1e-4")
    printed = tune_run(config, out, *overrides, "clip_grad_norm=0.5", "device_peak_tflops=0.5")
    assert metric(out, "loss")[1] == pytest.approx(first_loss(config, 2), rel=1e-6)
    # All digits are logged: about fifteen, not four.
    assert re.search(r"^Step 1 \| loss:\d\.\d{9,} ", (out / "logs" / "log.txt").read_text())
    assert set(metric(out, "val_loss")) == {3, 4} and metric(out, "val_loss")[4] < metric(out, "loss")[1]
    for name in (
        "tokens_per_second",
        "images_per_second",
        "data_wait_seconds",
        "peak_memory_gib",
        "mfu",
        "grad_norm",
    ):
        assert metric(out, name)[4] > 0, name
    assert (metric(out, "lr_encoder")[1], metric(out, "lr_decoder")[1]) == (1e-4, 1e-3)
    table = re.search(r"encoder +([\d,]+) +0 +float32 +0\.0001", printed)
    model = load_model(out / "model")
    assert table and int(table[1].replace(",", "")) == sum(
        p.numel() for n, p in model.vision_encoder.named_parameters() if "merger" not in n
    )
    assert "100%" in printed and "4/4" in printed
    for name in ("curves.png", "answers/step_3.png", "answers/step_4.png"):
        assert Image.open(out / name).width > 1000
    assert printed.count("  1  (1 image) What is in image 0?\n     expected  I see a\n     generated ") == 2
    assert OmegaConf.load(out / "torchtune_config.yaml").batch_size == 2
    # The saved config can be run again.
    assert resolve(str(out / "torchtune_config.yaml")).clip_grad_norm == 0.5


def test_tune_run_two_processes(config: Path, tmp_path: Path) -> None:
    out, one = tmp_path / "two", tmp_path / "one"
    overrides = (*LORA, "model.lora_dropout=0.0", "dtype=bf16", *VALIDATION)
    overrides = (*overrides, f"val_dataset.source={config.parent / 'data.json'}")
    tune_qwenvl_run(config, out, *overrides, "batch_size=1", processes=2)
    alone = run(one, *overrides, config=config)
    for name in ("loss", "val_loss"):
        # One run casts weights to bf16 by FSDP, the other by autocast: norms and sums are rounded elsewhere.
        assert list(metric(out, name).values()) == pytest.approx(
            [float(v) for v in alone.values(name).values()], rel=5e-3
        )
    merged = load_model(out / "model")
    base = config.parent / "checkpoint"
    arguments = adapter_arguments(out / "adapter", base)
    with_adapter = load_adapter(load_model(base, **arguments), out / "adapter").eval()
    batch = {"tokens": torch.arange(20)[None]}
    torch.testing.assert_close(merged(**batch), with_adapter(**batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("batchsize=2",), "Unknown config key 'batchsize'. Did you mean 'batch_size'"),
        (("+batch_size=2",), "Write batch_size=VALUE, no prefix"),
        (("checkpoint_dir=/nowhere",), "/nowhere"),
        (("checkpoint_dir=null",), "'checkpoint_dir' is not set: give checkpoint_dir="),
        (("dataset=null",), "'dataset' is not set"),
        (
            ("model=torchtune_qwenvl.models.qwen2_5_vl.qwen2_5_vl_3b", "~model.config"),
            "config.json and weights|checkpoint",
        ),
        (("~optimizer.lr",), "No learning rate for the encoder"),
        (("dtype=fp16",), "'dtype': expected 'bf16' or 'fp32', got 'fp16'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_errors_say_what_to_do(
    config: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    failed = run(tmp_path / "out", *overrides, config=config)
    assert failed.codes == [1]
    assert re.search(rf"ValueError: .*({message})", failed.printed), failed.printed


def test_an_epoch_of_skipped_samples_is_an_error(config: Path, tmp_path: Path) -> None:
    data = tmp_path / "broken.jsonl"
    data.write_text('{"messages": []}\n' * 4)
    summary = tmp_path / "error.json"  # which torchrun prints last
    environment = {"TORCHELASTIC_ERROR_FILE": str(summary)}
    overrides = (f"dataset.source={data}", "on_bad_sample=skip")
    failed = run(tmp_path / "out", *overrides, config=config, environment=environment)
    assert failed.codes == [1]
    for said in (failed.printed, summary.read_text()):
        assert re.search(r"ValueError: epoch 0 trained on no token at all: .* every sample was skipped", said)


def test_a_recipe_a_loss_and_a_collate_function_of_ones_own(config: Path, tmp_path: Path) -> None:
    (tmp_path / "my_recipe.py").write_text(OWN)
    data = config.parent / "data.json"
    common = ("shuffle=false", "gradient_accumulation_steps=2", "max_steps_per_epoch=2", *VALIDATION)
    common = (*common, f"val_dataset.source={data}", "val_answers=0", "run_val_every_n_steps=1")
    own = ("loss=my_recipe.weighted", "loss.weight=3.0", "collate_fn=my_recipe.reversed_rows")
    recipe = ("--nproc_per_node", "2", "my_recipe.py")
    printed = tune_run(config, tmp_path / "own", *common, *own, "batch_size=1", recipe=recipe)
    for rank in (0, 1):
        assert printed.count(f"rank {rank} stepped with 2 batches") == 2
    plain = run(tmp_path / "plain", *common, config=config)
    for name in ("loss", "val_loss"):
        expected = [3 * float(value) for value in plain.values(name).values()]
        assert len(expected) == 2
        # AdamW is almost indifferent to the loss's scale: only its eps is not.
        assert list(metric(tmp_path / "own", name).values()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_adapter_as_checkpoint_dir_is_trained_on(config: Path, tmp_path: Path, processes: int) -> None:
    """Parts, rank and targets are the adapter's, whatever the config says; a tiny rate leaves its values."""
    checkpoint = config.parent / "checkpoint"
    lora = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 3, "lora_alpha": 6}
    model = load_model(checkpoint, encoder_trainable="frozen", decoder_trainable="lora", **lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tmp_path / "adapter", source=checkpoint)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    before = load_file(weights)
    if processes == 2:  # as PEFT writes it, and of a base model that is elsewhere
        save_file({n: w for n, w in before.items() if "lora" in n}, weights)
        before = load_file(weights)
        known = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        moved = {**known, "base_model_name_or_path": "Qwen/Tiny", "modules_to_save": None}
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(moved))
    arguments = [
        f"checkpoint_dir={tmp_path}/adapter",
        "max_steps_per_epoch=1",
        "optimizer.lr=1e-9",
        *LORA[-3:-1],
    ]
    arguments += [f"base_dir={checkpoint}"] if processes == 2 else []
    done = run(tmp_path / "out", *arguments, "batch_size=1", config=config, processes=processes)
    assert set(done.codes) == {0}, done.printed
    assert "goes on training the adapter" in done.printed and "lora_rank 4 -> 3" in done.printed
    after = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.allclose(after[name], before[name], atol=1e-7) for name in before)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    written = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(checkpoint) and written["r"] == 3


def test_an_adapter_without_its_base_is_refused_before_anything_is_read(config: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"}'
    )
    done = run(tmp_path / "out", f"checkpoint_dir={tmp_path}", config=config)
    assert done.codes == [1] and "give it as base_dir=DIR" in done.printed
