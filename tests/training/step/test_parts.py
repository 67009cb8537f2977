"""Learning rates, groups, dtypes and the first gradients, by part."""

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from cases import Case, ours_like
from omegaconf import OmegaConf
from torch import nn

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.step.checkpointing import checkpoint_activations
from torchtune_qwenvl.training.step.optim import (
    build_optimizer,
    build_scheduler,
    current_learning_rates,
    learning_rates,
)
from torchtune_qwenvl.training.step.parts import GradientCheck, trainable_by_part, trainable_table
from torchtune_qwenvl.training.step.precision import set_parameter_dtypes

CONFIG = OmegaConf.create(
    {
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-5, "weight_decay": 0.1},
        "learning_rates": {"encoder": 2e-6, "fusion": None, "decoder": None},
    }
)

SOME = torch.tensor(5)  # labelled tokens of a step


@pytest.fixture
def setup() -> SimpleNamespace:
    hf = tiny.tiny_hf_model()
    return SimpleNamespace(
        hf=hf,
        model=ours_like(hf).train(),
        images=collate(Case(hf, [3, (1, 4, 6), 9]).samples),
        text=collate(Case(hf, [12]).samples),
    )


def backward(
    model: VisionLanguageModel, batch: dict[str, Any]
) -> tuple[dict[nn.Parameter, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Gradients, labelled tokens and images, as GradientCheck takes them."""
    model(**batch)[0].backward()
    gradients = {p: p.grad for p in model.parameters() if p.grad is not None}
    return gradients, SOME, torch.tensor(float(len(batch["encoder_input"]["vision"]["grid_thw"])))


def test_groups(setup: SimpleNamespace) -> None:
    parts = trainable_by_part(setup.model)
    rates = learning_rates(CONFIG, parts)
    assert rates == {"encoder": 2e-6, "fusion": 1e-5, "decoder": 1e-5}
    optimizer = build_optimizer(CONFIG.optimizer, parts, rates)
    seen: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        assert group["lr"] == rates[group["part"]]
        assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] > 0}
        seen += group["params"]
    assert {id(p) for p in seen} == {id(p) for p in setup.model.parameters()} and len(seen) == len(set(seen))
    node = OmegaConf.create(
        {"_component_": "torchtune.training.get_cosine_schedule_with_warmup", "num_warmup_steps": 2}
    )
    scheduler = build_scheduler(node, optimizer, 10)
    assert scheduler is not None and current_learning_rates(optimizer)["encoder"] == 0
    optimizer.step()
    scheduler.step()
    assert current_learning_rates(optimizer) == {part: rate / 2 for part, rate in rates.items()}


def test_schedule_that_knows_its_length(setup: SimpleNamespace) -> None:
    optimizer = torch.optim.SGD(setup.model.parameters(), lr=1.0)
    node = OmegaConf.create({"_component_": "torch.optim.lr_scheduler.StepLR", "step_size": 1})
    assert build_scheduler(node, optimizer, 10) is not None
    assert build_scheduler(None, optimizer, 10) is None


def test_table_names_what_trains() -> None:
    hf = tiny.tiny_hf_model()
    model = ours_like(hf, encoder_trainable=False)
    set_parameter_dtypes(model, torch.bfloat16)
    lines = [line.split() for line in trainable_table(model, {"fusion": 1e-4, "decoder": 1e-5}).splitlines()]
    rows = {line[0]: line for line in lines}
    assert rows["encoder"][1] == "0" and rows["encoder"][-1] == "-" and "bfloat16" in rows["encoder"][3]
    assert rows["fusion"][1:] == ["82,304", "0", "float32", "0.0001"]
    assert rows["all"][1] == f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}"


def test_nothing_trains(setup: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="Nothing to train"):
        trainable_by_part(setup.model.requires_grad_(False))


def test_healthy_gradients_pass_and_text_defers_the_visual_parts(setup: SimpleNamespace) -> None:
    check = GradientCheck(trainable_by_part(setup.model))
    check({}, torch.tensor(0), torch.tensor(3))  # every sample was skipped: no gradient is expected
    check(*backward(setup.model, setup.text))
    assert setup.model.vision_encoder.patch_embed.weight.grad.abs().max() == 0
    setup.model.zero_grad()
    check(*backward(setup.model, setup.images))
    check({}, SOME, torch.tensor(1.0))  # all is checked: nothing is read any more


def test_detached_encoder_is_found_at_the_first_images(setup: SimpleNamespace) -> None:
    merger = setup.model.vision_encoder.merger
    merge = merger.forward
    merger.forward = lambda x: merge(x).detach()
    check = GradientCheck(trainable_by_part(setup.model))
    check(*backward(setup.model, setup.text))
    with pytest.raises(ValueError, match=r"of the encoder got no gradient.*'vision_encoder\.patch_embed"):
        check(*backward(setup.model, setup.images))


def test_all_zero_is_found(setup: SimpleNamespace) -> None:
    merger = setup.model.vision_encoder.merger
    merge = merger.forward
    merger.forward = lambda x: 0 * merge(x)
    with pytest.raises(ValueError, match="All gradients of the encoder are zero"):
        GradientCheck(trainable_by_part(setup.model))(*backward(setup.model, setup.images))


def test_what_is_measured_on_a_gpu_is_read_later(setup: SimpleNamespace) -> None:
    merger = setup.model.vision_encoder.merger
    merge = merger.forward
    check = GradientCheck(trainable_by_part(setup.model), at_once=False)
    check(*backward(setup.model, setup.text))
    check.read()  # the decoder learns; of the visual parts nothing is known yet
    setup.model.zero_grad()
    merger.forward = lambda x: 0 * merge(x)
    check(*backward(setup.model, setup.images))
    merger.forward = merge
    check(*backward(setup.model, setup.images))  # the first step with images counts, not the last
    with pytest.raises(ValueError, match="All gradients of the encoder are zero"):
        check.read()


@pytest.mark.parametrize("masters", [True, False])
def test_dtypes(masters: bool) -> None:
    model = ours_like(tiny.tiny_hf_model(), encoder_trainable=False, fusion_trainable=False)
    set_parameter_dtypes(model, torch.bfloat16, masters)
    for name, parameter in model.named_parameters():
        if name.startswith("decoder"):
            expected = torch.float32 if masters else torch.bfloat16
        else:
            expected = torch.bfloat16 if parameter.dim() > 1 else torch.float32
        assert parameter.dtype == expected, name


def test_checkpointing_recomputes_and_changes_nothing(setup: SimpleNamespace) -> None:
    expected = {}
    backward(setup.model, setup.images)
    for name, parameter in setup.model.named_parameters():
        expected[name], parameter.grad = parameter.grad, None
    calls = []
    layer = setup.model.decoder.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *args: calls.append(1))
    checkpoint_activations(setup.model, {"encoder": True, "decoder": True})
    backward(setup.model, setup.images)
    assert len(calls) == 2
    for name, parameter in setup.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
