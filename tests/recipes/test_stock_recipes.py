"""Our model, transform, collate and checkpointer under torchtune's own recipes, unchanged, through `tune
run`."""

import json
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from launch import run
from stock import config, data, losses, start
from torchtune.datasets.multimodal import multimodal_chat_dataset
from transformers import Qwen2_5_VLForConditionalGeneration

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter
from torchtune_qwenvl.data import collate

STEPS = 30
LORA = {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "lora_rank": 16, "lora_alpha": 32}
EVERYWHERE = dict.fromkeys(("encoder_trainable", "fusion_trainable", "decoder_trainable"), "lora")
MODELS = {
    "full": {},
    "lora": {**LORA, **EVERYWHERE, "apply_lora_to_mlp": True},
    "mixed": {**LORA, **EVERYWHERE, "fusion_trainable": "full", "apply_lora_to_mlp": True},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A checkpoint folder, and 8 conversations about 8 images, over and over: every batch holds the same
    eight."""
    root = tmp_path_factory.mktemp("stock")
    tiny.save_tiny_folder(root / "checkpoint", seed=4)
    rows = []
    for i in range(8):
        tiny.photo(56 + 28 * (i % 3), 56 + 28 * (i % 2), seed=i).save(root / f"{i}.png")
        turns = [("human", "<image>what?"), ("gpt", "abcdefgh"[i] * 3)]
        rows.append({"image": f"{i}.png", "conversations": [{"from": f, "value": v} for f, v in turns]})
    (root / "data.json").write_text(json.dumps(rows * STEPS))
    return root


@pytest.fixture(scope="module")
def runs(workspace):
    """{name: (output folder, losses)} of the three models, trained side by side."""
    settings = {name: config(workspace, workspace / name, model) for name, model in MODELS.items()}
    started = {name: start(settings[name]) for name in MODELS}
    return {name: (workspace / name, losses(started[name], settings[name])) for name in MODELS}


@torch.no_grad()
def loss_of(model, root: Path) -> float:
    """Our own loss of the eight samples, computed inside the model's forward."""
    transform = load_transform(root / "checkpoint")
    dataset = multimodal_chat_dataset(transform, **data(root))
    batch = collate([dataset[i] for i in range(8)], padding_idx=transform.pad_id, ignore_idx=-100)
    loss, n = model.eval()(**batch)
    return (loss / n).item()


@pytest.mark.parametrize("name", MODELS)
def test_stock_recipe_trains_our_model(workspace, runs, name):
    output, logged = runs[name]
    assert len(logged) == STEPS
    first = loss_of(load_model(workspace / "checkpoint"), workspace)
    assert abs(logged[0] - first) <= 1e-6 * first
    assert logged[-1] < 0.1 * logged[0], logged

    final = output / "epoch_0"
    trained = loss_of(load_model(final), workspace)
    assert trained < 0.1 * first
    _, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(final, output_loading_info=True)
    assert not any(info.values()), info
    if name != "full":
        arguments = adapter_arguments(final / "adapter", workspace / "checkpoint")
        assert {key: arguments[key] for key in EVERYWHERE} == {key: MODELS[name][key] for key in EVERYWHERE}
        adapted = load_adapter(load_model(workspace / "checkpoint", **arguments), final / "adapter")
        assert abs(loss_of(adapted, workspace) - trained) <= 1e-5 * first


def test_our_recipe_begins_with_the_same_loss(workspace, runs):
    settings = {
        "checkpoint_dir": str(workspace / "checkpoint"),
        "dtype": "fp32",
        "tokenizer": {"dtype": "fp32"},
        "num_workers": 0,
        "shuffle": False,
        "batch_size": 8,
        "max_steps_per_epoch": 1,
        **{key: config(workspace, workspace, {})[key] for key in ("model", "dataset")},
    }
    (workspace / "ours.yaml").write_text(yaml.safe_dump(settings))
    finished = run(workspace / "ours", config=workspace / "ours.yaml")
    assert finished.codes == [0], finished.printed
    ours = float(finished.values("loss")[1])
    for _, logged in runs.values():
        assert abs(logged[0] - ours) <= 1e-6 * ours


def test_mixed_training_resumes_from_the_first_of_two_epochs(workspace):
    """Base, adapter and full parts are restored: the resumed run begins with the loss that was saved.

    With activation checkpointing, which wraps our layers.
    """
    output = workspace / "resumed"
    changes = {"epochs": 2, "max_steps_per_epoch": 3, "enable_activation_checkpointing": True}
    settings = config(workspace, output, MODELS["mixed"]) | changes
    assert len(losses(start(settings), settings)) == 6
    saved = loss_of(load_model(output / "epoch_0"), workspace)
    settings |= {"resume_from_checkpoint": True}
    settings["metric_logger"]["log_dir"] = str(output / "again")
    resumed = losses(start(settings), settings)
    assert len(resumed) == 3
    assert abs(resumed[0] - saved) <= 1e-5 * saved
    assert resumed[-1] < resumed[0]
