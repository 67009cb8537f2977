"""The checkpointer of the stock recipes, without a recipe: what is loaded, written, and refused."""

import json

import pytest
import tiny
import torch
from torchtune.modules.peft import get_adapter_state_dict, get_merged_lora_ckpt

from torchtune_qwenvl import load_model
from torchtune_qwenvl.checkpoints.checkpointer import FolderCheckpointer
from torchtune_qwenvl.checkpoints.shards import read_shard

LORA = {
    "encoder_trainable": "full",
    "fusion_trainable": "frozen",
    "decoder_trainable": "lora",
    "lora_attn_modules": ["q_proj", "v_proj"],
    "lora_rank": 2,
    "lora_alpha": 6,
}
PROGRESS = {"epochs_run": 1, "seed": 0, "total_epochs": 2, "max_steps_per_epoch": 3}


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def source(request, tmp_path):
    return tiny.save_tiny_folder(tmp_path / "source", tie=request.param, dtype=torch.bfloat16)


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def of_recipe(model, **more):
    """The dict that torchtune's LoRA recipe hands over."""
    state = model.state_dict()
    merged = get_merged_lora_ckpt({n: t.clone() for n, t in state.items()}, rank=2, alpha=6)
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA"}
    return {"model": merged, "adapter": get_adapter_state_dict(state), "adapter_config": config, **more}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_loads_what_the_model_takes(source, tmp_path):
    loaded = FolderCheckpointer(str(source), str(tmp_path / "out")).load_checkpoint()
    assert loaded.keys() == {"model"}
    model = load_model(source)
    assert equal(dict(model.named_parameters()), loaded["model"])
    model.load_state_dict(loaded["model"])


def test_full_training_resumes_in_the_dtype_it_trains_in(source, tmp_path):
    checkpointer = FolderCheckpointer(str(source), str(tmp_path / "out"))
    model = moved(load_model(source, dtype=torch.float32))
    state = {"model": model.state_dict(), "optimizer": {"state": {}, "param_groups": []}, **PROGRESS}
    checkpointer.save_checkpoint(state, epoch=0, intermediate_checkpoint=True)
    resumed = FolderCheckpointer(
        str(source), str(tmp_path / "out"), should_load_recipe_state=True
    ).load_checkpoint()
    assert equal(resumed.pop("model"), model.state_dict())
    assert resumed == {"optimizer": state["optimizer"], **PROGRESS}
    checkpointer.save_checkpoint({"model": model.state_dict()}, epoch=1)
    final = read_shard(tmp_path / "out" / "epoch_1" / "model.safetensors")
    assert {entry.dtype for entry in final.entries.values()} == {torch.bfloat16}


def test_mixed_training_resumes_with_base_adapter_and_full_parts(source, tmp_path):
    model = moved(load_model(source, dtype=torch.float32, **LORA))
    checkpointer = FolderCheckpointer(str(source), str(tmp_path / "out"))
    checkpointer.save_checkpoint(of_recipe(model, **PROGRESS), epoch=0, intermediate_checkpoint=True)
    resumed = FolderCheckpointer(str(source), str(tmp_path / "out"), True).load_checkpoint()
    again = load_model(source, dtype=torch.float32, **LORA)
    again.load_state_dict({**resumed["model"], **resumed["adapter"]})
    assert equal(again.state_dict(), model.state_dict())
    config = json.loads((tmp_path / "out" / "epoch_0" / "adapter" / "adapter_config.json").read_text())
    assert "model.visual.blocks.0.attn.qkv" in config["modules_to_save"]
    assert not any("merger" in name or "language_model" in name for name in config["modules_to_save"])


def test_adapter_only_writes_no_weights_and_loses_no_full_part(source, tmp_path):
    model = moved(load_model(source, dtype=torch.float32, **{**LORA, "encoder_trainable": "frozen"}))
    checkpointer = FolderCheckpointer(str(source), str(tmp_path / "out"))
    state = of_recipe(model, **PROGRESS)
    del state["model"]
    state["optimizer"] = {"state": {i: {} for i in range(len(state["adapter"]))}, "param_groups": []}
    checkpointer.save_checkpoint(state, epoch=0, intermediate_checkpoint=True, adapter_only=True)
    assert [path.name for path in (tmp_path / "out" / "epoch_0").iterdir()] == ["adapter"]
    resumed = FolderCheckpointer(str(source), str(tmp_path / "out"), True).load_checkpoint()
    assert equal(resumed["adapter"], state["adapter"])
    state["optimizer"]["state"][99] = {}
    with pytest.raises(ValueError, match=r"save_adapter_weights_only: parts that train fully.*would be lost"):
        checkpointer.save_checkpoint(state, epoch=1, intermediate_checkpoint=True, adapter_only=True)


def test_the_recipe_state_is_never_unpickled(source, tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("pwned",)

    path = tmp_path / "out" / "recipe_state" / "recipe_state.pt"
    path.parent.mkdir(parents=True)
    torch.save({"checkpoint_folder": Evil()}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        FolderCheckpointer(str(source), str(tmp_path / "out"), True).load_checkpoint()


def test_wrong_use_is_told(source, tmp_path):
    with pytest.raises(ValueError, match=r"recipe_state.pt is missing, there is no finished epoch"):
        FolderCheckpointer(str(source), str(tmp_path / "out"), True).load_checkpoint()
    with pytest.raises(ValueError, match=r"holds a qwen2_5_vl model, expected LLAMA3"):
        FolderCheckpointer(str(source), str(tmp_path / "out"), model_type="LLAMA3")
    with pytest.raises(ValueError, match=r"no config.json"):
        FolderCheckpointer(str(tmp_path), str(tmp_path / "out"))
