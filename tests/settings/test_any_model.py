"""`model=any` needs only checkpoint_dir, and `show --stock` is complete, for every family."""

from pathlib import Path

import pytest
import tiny
import torch
from torchtune.config import instantiate
from torchtune.modules.peft import get_adapter_params

from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.settings.stock import for_stock_recipe

NAME = "qwen2_5_vl/3B_lora"
# What torchtune's LoRA recipes read of `model`.
READ = {"lora_rank", "lora_alpha", "lora_attn_modules", "apply_lora_to_mlp"}


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_folder(tmp_path_factory.mktemp(request.param) / "checkpoint", family=request.param)


@pytest.mark.parametrize("config", ["any/model_full", "any/model_lora", NAME])
def test_family_size_and_statistics_come_from_the_folder(folder: Path, config: str) -> None:
    swap = ["model=any"] if config == NAME else []
    cfg = resolve(config, [f"checkpoint_dir={folder}", "dataset.source=x.json", *swap])
    stock = for_stock_recipe(cfg)
    with torch.device("meta"):
        ours, theirs = instantiate(cfg.model), instantiate(stock.model)
        expected = get_family(folder).from_config(folder)
    with CheckpointFolder(folder) as files:
        statistics = files.image_statistics()
    scale = (tuple(statistics["image_mean"]), tuple(statistics["image_std"]))
    shapes = {name: p.shape for name, p in expected.named_parameters()}
    for model in (ours, theirs):
        named = dict(model.named_parameters())
        assert {name: p.shape for name, p in named.items() if name in shapes} == shapes
        assert model.vision_encoder.patch_embed.scale == scale
        trains = {name for name, p in named.items() if p.requires_grad}
        assert trains == (set(get_adapter_params(model)) if "lora" in cfg.model.values() else trains) != set()
    assert config == "any/model_full" or stock.model.keys() >= READ


def test_what_is_not_there_is_asked_for(folder: Path, tmp_path: Path) -> None:
    family = get_family(folder)
    builder = f"model={family.from_config.__module__}.{family.from_config.__qualname__}"
    cfg = resolve(NAME, [builder, "model.config=${checkpoint_dir}", f"checkpoint_dir={folder}"])
    assert for_stock_recipe(cfg).model.image_mean
    cfg = resolve(NAME, [builder, "model.config=x", f"checkpoint_dir={tmp_path}"])
    with pytest.raises(ValueError, match=r"'model\.image_mean': .* gets mean and deviation"):
        for_stock_recipe(cfg)
