"""What trains of an encoder, at which rate, and the mean of its weights."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from torchtune_qwenvl.models.vit import classic_vit
from torchtune_qwenvl.modules.adapters.attach import attach_lora, merge_lora
from torchtune_qwenvl.modules.adapters.lora import Adapter
from torchtune_qwenvl.training.step.ema import MeanOfWeights
from torchtune_qwenvl.training.step.encoder_parts import choose_trainable, parts_of, rates_of, undecayed
from torchtune_qwenvl.training.step.optim import build_optimizer

ADAPTER = Adapter(frozenset({"q_proj", "w1"}), rank=2, alpha=4.0)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return classic_vit(
        img_size=8, patch_size=4, embed_dim=16, depth=3, num_heads=2, head_dim=8, num_classes=4
    )


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_modes() -> None:
    every = set(dict(encoder().named_parameters()))
    heads = {name for name in every if name.startswith("head.")}
    expected = {
        "everything": every,
        "head": heads,
        "last_n": heads | {name for name in every if name.startswith(("layers.1.", "layers.2."))},
    }
    for mode, names in expected.items():
        model = encoder()
        choose_trainable(model, mode, last_n=2, adapter=None)
        assert trainable(model) == names, mode
    model = encoder()
    choose_trainable(model, "lora", last_n=2, adapter=ADAPTER)
    assert len(trainable(model) - heads) == 3 * 2 * 2
    assert all(".lora_" in name for name in trainable(model) - heads)


def test_rates_fall_from_layer_to_layer() -> None:
    """d = 0.5: the head 1, layers 1/2, 1/4, 1/8, the stem 1/16."""
    model = encoder()
    parts = parts_of(model, 0.5)
    assert rates_of(model, parts, 1.0, None, 0.5) == {
        **{"stem": 1 / 16, "layer_0": 1 / 8, "layer_1": 1 / 4, "layer_2": 1 / 2},
        "head": 1.0,
    }
    assert rates_of(model, parts, 1.0, 3.0, 0.5)["head"] == 3.0
    assert sum(len(names) for names in parts.values()) == len(list(model.parameters()))
    assert rates_of(model, parts_of(model, 1.0), 0.1, None, 1.0) == {"encoder": 0.1, "head": 0.1}


def test_learned_positions_are_not_decayed() -> None:
    model = encoder()
    parts = parts_of(model, 1.0)
    node = OmegaConf.create({"_component_": "torch.optim.AdamW", "weight_decay": 0.3})
    optimizer = build_optimizer(node, parts, {"encoder": 0.1, "head": 0.1}, undecayed(model))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.dim() < 2 or name.startswith(("position_embed", "cls_token"))
        assert decay[id(parameter)] == (0.0 if spared else 0.3), name


def test_merged_lora_computes_the_same() -> None:
    model = encoder().double().eval()
    pixels, grids = torch.randn(8, 48, dtype=torch.float64), [[1, 2, 2]] * 2
    before = model(pixels, grids)
    assert attach_lora(model, ADAPTER) == 6
    assert torch.equal(model(pixels, grids), before)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            nn.init.normal_(parameter)
    changed = model(pixels, grids)
    assert (changed - before).abs().max() > 0.01
    merge_lora(model)
    assert not any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(model(pixels, grids), changed, rtol=0, atol=1e-5)


def test_mean_of_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    mean = MeanOfWeights(model, 0.75)
    expected = []
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, value)
        mean.update(model)
        expected.append(mean.module.weight.item())
    assert expected == [1.0, 1.25, 1.9375]
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        MeanOfWeights(model, 1)
