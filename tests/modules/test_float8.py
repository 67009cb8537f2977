"""Products in float8: near the usual ones, of the right linears, and a run that learns as in bf16."""

import copy
from typing import Any

import pytest
import tiny
import torch
from cases import ours_like, relative
from torch import Tensor, nn
from torchao.float8.float8_linear import Float8Linear

from torchtune_qwenvl.modules.adapters.dora import DoRALinear
from torchtune_qwenvl.modules.adapters.lora_linear import LoRALinear
from torchtune_qwenvl.modules.float8 import SCALINGS, FrozenFloat8Linear, use_float8
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.step.precision import autocast, set_parameter_dtypes

CPU = torch.device("cpu")
LORA = {
    **{"decoder_trainable": "lora", "encoder_trainable": "frozen", "fusion_trainable": "frozen"},
    **{"lora_attn_modules": ["q_proj", "v_proj", "output_proj"], "lora_rank": 16, "lora_alpha": 32},
}
MODES: dict[str, dict[str, Any]] = {"full": {}, "lora": LORA, "dora": {**LORA, "use_dora": True}}
WORDS = 200


def batch(number: int) -> Tensor:
    """Rows of words of which three in four follow from the one before: their loss has a floor."""
    generator = torch.Generator().manual_seed(number)
    words = torch.randint(0, WORDS, (8, 33), generator=generator)
    follows = torch.rand(words.shape, generator=generator) < 0.75
    for at in range(1, words.shape[1]):
        words[:, at] = torch.where(follows[:, at], (words[:, at - 1] + 7) % WORDS, words[:, at])
    return words


def built(mode: str) -> VisionLanguageModel:
    """A tiny model in bf16, with fp32 masters."""
    model = ours_like(tiny.tiny_hf_model(), **MODES[mode]).train()
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            nn.init.normal_(parameter, std=0.02)
    set_parameter_dtypes(model, torch.bfloat16)
    return model


def step(model: nn.Module, tokens: Tensor) -> Tensor:
    with autocast(CPU, torch.bfloat16):
        loss_sum, count = model(tokens, labels=tokens)
    (loss_sum / count).backward()
    return loss_sum.detach() / count


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("trained", [True, False])
def test_one_product(trained: bool, scaling: str) -> None:
    """e4m3 rounds by 3.6 % (rms), e5m2 gradients by 7.2 %; errors of two factors add in squares."""
    usual = nn.Linear(96, 160)
    decoder = nn.ModuleDict({"layers": nn.ModuleList([copy.deepcopy(usual)])}).requires_grad_(trained)
    assert use_float8(decoder, scaling, CPU, smallest=16) == 1
    linear = decoder["layers"][0]
    x = torch.randn(7, 50, 96, requires_grad=True)
    grad, (out, expected) = torch.randn(7, 50, 160), (linear(x), usual(x))
    assert 0.03 < relative(out, expected) < 0.06
    (to_x,) = torch.autograd.grad(out, x, grad, retain_graph=True)
    (expected_to_x,) = torch.autograd.grad(expected, x, grad, retain_graph=True)
    assert 0.03 < relative(to_x, expected_to_x) < 0.09
    if trained:
        found, right = (
            torch.autograd.grad(y, m.weight, grad)[0] for y, m in ((out, linear), (expected, usual))
        )
        assert 0.03 < relative(found, right) < 0.09
    else:
        assert linear.weight.grad is None and not linear.weight.requires_grad


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("mode", MODES)
def test_a_model(mode: str, scaling: str) -> None:
    usual, model = built(mode), built(mode)
    model.load_state_dict(usual.state_dict())
    names = set(model.state_dict())
    assert use_float8(model.decoder, scaling, CPU, smallest=16) == 14
    assert set(model.state_dict()) == names
    assert 1e-6 < relative(step(model, batch(0)), step(usual, batch(0))) < 0.01
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        n for n, p in usual.named_parameters() if p.grad is not None
    }


def test_which_linears_take_part() -> None:
    for mode, kinds in {
        "full": {Float8Linear},
        "lora": {LoRALinear, FrozenFloat8Linear},
        "dora": {DoRALinear, FrozenFloat8Linear},
    }.items():
        model = built(mode)
        use_float8(model.decoder, "tensorwise", CPU, smallest=16)
        linears = (nn.Linear, LoRALinear, DoRALinear)
        inside = [m for name, m in model.decoder.layers.named_modules() if "lora_" not in name]
        assert {type(m) for m in inside if isinstance(m, linears)} == kinds
        assert type(model.decoder.output) not in (Float8Linear, FrozenFloat8Linear)
        assert not any(isinstance(m, Float8Linear) for m in model.vision_encoder.modules())
    wide = built("full")
    assert 0 < use_float8(wide.decoder, "tensorwise", CPU, smallest=48) < 14


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_layers_compile_without_breaks(mode: str) -> None:
    torch._dynamo.reset()
    plain, model = built(mode), built(mode)
    model.load_state_dict(plain.state_dict())
    use_float8(model.decoder, "tensorwise", CPU, smallest=16)
    linear, usual = model.decoder.layers[0].mlp.w1, plain.decoder.layers[0].mlp.w1
    compiled = torch.compile(linear, backend="eager", dynamic=True, fullgraph=True)
    for rows in (5, 9):
        x = torch.randn(rows, 64)
        assert relative(compiled(x).float(), linear(x).float()) < 1e-6
        assert relative(compiled(x).float(), usual(x.to(usual.weight.dtype)).float()) < 0.1


@pytest.mark.parametrize(
    ("mode", "scaling"),
    [
        ("full", "tensorwise"),
        ("lora", "rowwise"),
        pytest.param("full", "rowwise", marks=pytest.mark.campaign),
        pytest.param("lora", "tensorwise", marks=pytest.mark.campaign),
    ],
)
def test_a_run_of_200_steps_learns_as_in_bf16(mode: str, scaling: str) -> None:
    """Every word is read once: what is learnt by heart would make small losses, and large ratios of them."""
    start, losses = built(mode), {}
    for kind in ("bf16", "float8"):
        model = copy.deepcopy(start)
        if kind == "float8":
            use_float8(model.decoder, scaling, CPU, smallest=16)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3 if mode == "full" else 1e-2)
        found = []
        for number in range(200):
            optimizer.zero_grad()
            found.append(step(model, batch(number)))
            optimizer.step()
        losses[kind] = torch.stack(found)
    last = {kind: found[-20:].mean() for kind, found in losses.items()}
    assert last["bf16"] < 0.9 * losses["bf16"][:20].mean()
    assert relative(losses["float8"].mean(), losses["bf16"].mean()) < 0.01
    assert relative(last["float8"], last["bf16"]) < 0.01


@pytest.mark.parametrize(
    ("scaling", "arguments", "message"),
    [
        ("blockwise", {}, "float8: expected null or one of tensorwise, rowwise, got 'blockwise'"),
        ("rowwise", {}, "float8: no linear of the decoder has both widths from 1,024 on"),
        ("rowwise", {**LORA, "quantize_base": True}, "the decoder's weights are in NF4. Set float8=null"),
    ],
)
def test_refuses(scaling: str, arguments: dict[str, Any], message: str) -> None:
    text = {"intermediate_size": 1024}
    big = tiny.tiny_hf_model(text=text) if "quantize_base" in arguments else tiny.tiny_hf_model()
    with pytest.raises(ValueError, match=message):
        use_float8(ours_like(big, **arguments).decoder, scaling, CPU)


def test_a_gpu_without_float8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ValueError, match="float8: NVIDIA A100 has no float8"):
        use_float8(nn.Module(), "rowwise", torch.device("cuda"))
