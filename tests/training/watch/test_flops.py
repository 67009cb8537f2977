"""The formula against torch's own counter, which sees every matrix product that really runs."""

import pytest
import tiny
import torch
from cases import Case, ours_like
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.models.vit import classic_vit
from torchtune_qwenvl.training.step.encoder_parts import adapter_of, choose_trainable
from torchtune_qwenvl.training.watch.flops import EncoderFlops, FlopCounter

# Windows of 4 x 4 visual tokens: whole ones, edges, and a frame smaller than one.
GRIDS = [(1, 12, 20), (1, 8, 6)]
SETTINGS = [
    {},
    {"encoder_trainable": "frozen", "fusion_trainable": "frozen"},
    {"encoder_trainable": "frozen"},
    {"decoder_trainable": "frozen"},
    {"decoder_trainable": "frozen", "fusion_trainable": "frozen"},
]


def counting() -> FlopCounterMode:
    """torch's counter, which does not know the product in place that LoRA adds by."""

    def product(_: torch.Size, a: torch.Size, b: torch.Size, **options: object) -> int:
        return 2 * a[0] * a[1] * b[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product})


@pytest.mark.parametrize("trainable", SETTINGS, ids=str)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_formula(trainable: dict, tie: bool) -> None:
    hf = tiny.tiny_hf_model(tie=tie)
    model = ours_like(hf, **trainable).train()
    batch = collate(Case(hf, [3, *GRIDS, 9]).samples)
    s, labelled = batch["tokens"].shape[1], int((batch["labels"][:, 1:] != -100).sum())
    with counting() as counted, sdpa_kernel(SDPBackend.MATH):
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
    with counting() as counted, sdpa_kernel(SDPBackend.MATH):
        model.train()(**batch)[0].backward()
    ours = FlopCounter(model)
    total = ours([s], labelled) + ours.per_pair * (s * s - s * (s + 1) / 2)
    assert counted.get_total_flops() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("train", ["everything", "last_n", "lora", "head"])
@pytest.mark.parametrize("which", ["windows", "cls token"])
def test_a_classifier(which: str, train: str) -> None:
    """An encoder with a head: with windows and a merger, and with a cls token."""
    if which == "windows":
        encoder = ours_like(tiny.tiny_hf_model()).vision_encoder
    else:
        encoder = classic_vit(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2)
    grids = GRIDS if which == "windows" else [(1, 4, 4), (1, 4, 4)]
    encoder.reset_classifier(5)
    # All three: for keys alone without LoRA the math kernel skips a product that fused kernels do.
    lora = {
        "attn_modules": ["q_proj", "k_proj", "v_proj"],
        "mlp": False,
        "rank": 4,
        "alpha": 8,
        "dropout": 0.0,
    }
    choose_trainable(encoder, train, last_n=1, adapter=adapter_of(lora))
    pixels = torch.zeros(sum(t * h * w for t, h, w in grids), encoder.patch_embed.still_width)
    with counting() as counted, sdpa_kernel(SDPBackend.MATH):
        encoder.train()(pixels, grids).sum().backward()
    ours = EncoderFlops(encoder)
    total = ours(grids, pixels.shape[1]) + ours.per_image * len(grids)
    # The table of positions is interpolated by matrices; these are no work of the model.
    table = counted.get_flop_counts().get("VisionTransformer.position_embed", {}).get(torch.ops.aten.bmm, 0)
    assert counted.get_total_flops() - table == pytest.approx(total, rel=1e-9)
