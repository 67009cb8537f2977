"""LoRA inside of matrix products: torchtune's values and gradients, in the compute dtype."""

import pytest
import torch
from torch import nn
from torchtune.modules.peft import LoRALinear as TorchtuneLoRALinear

from torchtune_qwenvl.modules.adapters.lora_linear import FrozenNF4Linear, LoRALinear
from torchtune_qwenvl.modules.experts.grouped import GroupedLoRALinear

ROWS, WIDTH, OUT, RANK, ALPHA = 6, 128, 256, 4, 8.0


def pair(bias: bool, **options: object) -> tuple[nn.Module, nn.Module]:
    ours = LoRALinear(WIDTH, OUT, RANK, ALPHA, use_bias=bias, **options)
    theirs = TorchtuneLoRALinear(WIDTH, OUT, RANK, ALPHA, use_bias=bias, **options)
    nn.init.normal_(ours.lora_b.weight)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("base_trains", [False, True])
@pytest.mark.parametrize("shape", [(ROWS,), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_torchtunes(bias: bool, shape: tuple[int, ...], base_trains: bool) -> None:
    ours, theirs = (module.double() for module in pair(bias))
    inputs = [torch.randn(*shape, WIDTH, dtype=torch.float64).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    weights = torch.randn(*shape, OUT, dtype=torch.float64)
    results = []
    for module, x in zip((ours, theirs), inputs, strict=True):
        module.weight.requires_grad_(base_trains)
        out = module(x)
        (out * weights).sum().backward()
        results.append([out, x.grad, *(p.grad for p in module.parameters() if p.requires_grad)])
    assert len(results[0]) == len(results[1]) >= 4
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_it_keeps_its_input_and_something_thin() -> None:
    ours, _ = pair(bias=True)
    ours.weight.requires_grad_(False)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours(torch.randn(ROWS, WIDTH))
    known = {p.data_ptr() for p in ours.parameters()}
    assert sorted(t.numel() for t in kept if t.data_ptr() not in known) == [ROWS * RANK, ROWS * WIDTH]


@pytest.mark.parametrize("quantize_base", [False, True])
def test_an_fp32_bias_does_not_make_the_result_fp32(quantize_base: bool) -> None:
    """Otherwise attention after biased QLoRA projections runs in fp32."""
    linears = [LoRALinear(WIDTH, OUT, RANK, ALPHA, use_bias=True, quantize_base=quantize_base)]
    if quantize_base:
        linears.append(FrozenNF4Linear(WIDTH, OUT, bias=True, dtype=torch.bfloat16))
        linears[-1].bias.data = linears[-1].bias.data.float()
    for linear in linears:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(torch.randn(ROWS, WIDTH, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_lora_on_experts_by_its_formula() -> None:
    experts = GroupedLoRALinear(2, WIDTH, OUT, RANK, ALPHA).double()
    nn.init.normal_(experts.lora_b.weight)
    x, counts = torch.randn(5, WIDTH, dtype=torch.float64), torch.tensor([2, 3])
    out = experts(x, counts)
    for rows, result, w, a, b in zip(
        x.split([2, 3]), out.split([2, 3]), experts.weight, experts.lora_a.weight, experts.lora_b.weight,
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(result, rows @ w.T + ALPHA / RANK * rows @ a.T @ b.T)
