"""Compiled layers: the same loss and gradients, and nothing is compiled again for other lengths."""

import pytest
import tiny
import torch
from cases import DELTA_NETS, Case, ours_like, relative, widened
from torch._dynamo.utils import counters

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.step.checkpointing import checkpoint_activations
from torchtune_qwenvl.training.step.layers import compile_layers

Batch = dict
# Warm-up: an image alone, text alone, and rows without padding. Then every other length and number of images.
ROWS = ([3, (1, 4, 6), 9], [12], [5, (1, 6, 8), 12, (1, 4, 4)], [7, (1, 10, 6), 30], [2, (1, 8, 8), 40], [33])
WARM_UP = 3


def batches(hf: torch.nn.Module) -> list[Batch]:
    samples = Case(hf, *ROWS).samples
    shapes = [[0], [1], [0, 1, 2], [2], [3], [5], [4, 1, 5], [3, 2], [4, 5]]
    packed = {2, 6, 7}
    return [
        collate([samples[i] for i in rows], padding_free=number in packed)
        for number, rows in enumerate(shapes)
    ]


def gradients(model: VisionLanguageModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    loss, _ = model(**batch)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl_moe", "qwen3_5", "glm4v"])
def test_compiled_once_for_all_lengths(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced, and when, is the same for every backend; "eager" runs what was traced as it is."""
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "eager")
    torch._dynamo.reset()
    hf = tiny.tiny_hf_model(family=family)
    plain, compiled = ours_like(hf).train(), ours_like(hf).train()
    if amplifies := family in DELTA_NETS:  # rounding
        plain, compiled = plain.double(), compiled.double()
    compile_layers(compiled)
    checkpoint_activations(compiled, {"encoder": True})
    graphs = []
    for batch in map(widened, batches(hf)) if amplifies else batches(hf):
        (loss, all_gradients), expected = gradients(compiled, batch), gradients(plain, batch)
        graphs.append(counters["stats"]["unique_graphs"])
        assert relative(loss, expected[0]) <= 1e-6
        assert relative(all_gradients, expected[1]) <= 1e-5
    assert graphs[0] > 0
    assert graphs[WARM_UP - 1] == graphs[-1], graphs
