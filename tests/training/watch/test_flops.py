"""The formula against torch's own counter, which sees every matrix product that really runs."""

import pytest
import tiny
from cases import Case, ours_like
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.training.watch.flops import FlopCounter

# Windows of 4 x 4 visual tokens: whole ones, edges, and a frame smaller than one.
GRIDS = [(1, 12, 20), (1, 8, 6)]
SETTINGS = [
    {},
    {"encoder_trainable": "frozen", "fusion_trainable": "frozen"},
    {"encoder_trainable": "frozen"},
    {"decoder_trainable": "frozen"},
    {"decoder_trainable": "frozen", "fusion_trainable": "frozen"},
]


@pytest.mark.parametrize("trainable", SETTINGS, ids=str)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_formula(trainable: dict, tie: bool) -> None:
    hf = tiny.tiny_hf_model(tie=tie)
    model = ours_like(hf, **trainable).train()
    batch = collate(Case(hf, [3, *GRIDS, 9]).samples)
    s, labelled = batch["tokens"].shape[1], int((batch["labels"][:, 1:] != -100).sum())
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        loss, n = model(**batch)
        loss.backward()
    assert n == labelled
    width = batch["encoder_input"]["vision"]["pixel_values"].shape[1]
    ours = FlopCounter(model)
    total = ours([s], labelled, GRIDS, width)
    # The math kernel computes the whole square of causal attention and masks half of it away.
    whole_square = total + ours.per_pair * (s * s - s * (s + 1) / 2)
    assert counted.get_total_flops() == pytest.approx(whole_square, rel=1e-9)


def test_lora_adds_its_own_and_no_weight_gradient_of_the_base() -> None:
    hf = tiny.tiny_hf_model()
    lora = {"lora_attn_modules": ["q_proj", "k_proj", "v_proj"], "lora_rank": 4, "lora_alpha": 8}
    model = ours_like(hf, encoder_trainable=False, fusion_trainable=False, decoder_trainable="lora", **lora)
    batch = collate(Case(hf, [30]).samples)
    s, labelled = batch["tokens"].shape[1], int((batch["labels"][:, 1:] != -100).sum())
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        model.train()(**batch)[0].backward()
    ours = FlopCounter(model)
    total = ours([s], labelled) + ours.per_pair * (s * s - s * (s + 1) / 2)
    assert counted.get_total_flops() == pytest.approx(total, rel=1e-9)
