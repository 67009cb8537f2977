"""Which layers are recomputed, and what decides how many."""

import pytest
import tiny
import torch
from cases import Case, ours_like
from torch import nn
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.step.checkpointing import (
    Recomputed,
    checkpoint_activations,
    fitting_share,
    recomputed_layers,
)
from torchtune_qwenvl.training.step.memory_trial import MemoryTrial, memory_trial

CPU = torch.device("cpu")


def tower(layers: int) -> nn.Module:
    parts = {"attn": nn.Identity(), "mlp": nn.Identity(), "sa_norm": nn.Identity(), "mlp_norm": nn.Identity()}
    made = nn.Module()
    made.decoder = nn.ModuleList(TransformerSelfAttentionLayer(**parts) for _ in range(layers))
    return made


@pytest.mark.parametrize(
    ("share", "recomputed"),
    [(True, "11111111"), (0.5, "01010101"), (0.25, "00010001"), (0.75, "01110111"), (1, "11111111")],
)
def test_a_share_is_spread_evenly(share: float, recomputed: str) -> None:
    model = tower(8)
    checkpoint_activations(model, {"encoder": False, "decoder": share})
    assert "".join(str(int(layer.on)) for layer in recomputed_layers(model)) == recomputed


@pytest.mark.parametrize("share", [-0.1, 1.5, 2])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match=r"activation_checkpointing\.decoder: .* got"):
        checkpoint_activations(tower(2), {"decoder": share})


def test_part_of_the_layers_gives_the_same_gradients() -> None:
    hf = tiny.tiny_hf_model()
    batch = collate(Case(hf, [3, (1, 4, 6), 9]).samples)
    plain, some = ours_like(hf).train(), ours_like(hf).train()
    checkpoint_activations(some, {"encoder": 0.5, "decoder": 0.5})
    on = [m.forward.on for m in some.modules() if isinstance(m.__dict__.get("forward"), Recomputed)]
    assert {True, False} == set(on)
    for model in (plain, some):
        model(**batch)[0].backward()
    for one, other in zip(plain.parameters(), some.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("peak", "less", "total", "share"),
    [
        (20.0, 30.0, 80.0, 0.0),  # all layers kept would take 20 + 40 of 73.6
        (20.0, 45.0, 80.0, 0.5),  # 100 more for all: 53.6 of them are there
        (75.0, 85.0, 80.0, 1.0),  # already more than what may be filled
        (20.0, 20.0, 80.0, 0.0),  # keeping layers costs nothing
    ],
)
def test_the_smallest_share_that_fits(peak: float, less: float, total: float, share: float) -> None:
    assert fitting_share(peak, less, 0.75, total) == share


def test_the_trial_measures_both_and_puts_everything_back() -> None:
    model = tower(8)
    checkpoint_activations(model, {"decoder": 0.5})
    layers = recomputed_layers(model)
    before = [layer.on for layer in layers]

    def peak_of(run: object) -> float:
        return 20.0 + 12.5 * sum(not layer.on for layer in layers)

    assert MemoryTrial(layers, 80.0, peak_of).share(lambda: None, World(CPU)) == 0.5
    assert [layer.on for layer in layers] == before
    assert memory_trial(model, CPU) is None
