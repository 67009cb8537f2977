"""Our model in fp32 against a true fp64 run of transformers', tiny and random.

Visual tokens, logits, loss and every gradient.

The bounds are those a correct fp32 implementation keeps to such a run; they are never widened.
"""

import pytest
import tiny
import torch
from cases import Case, Exactly, Video, exact_like, of_scale, ours_like, relative, renamed, widened

from torchtune_qwenvl.data import collate

# Pieces of text (tokens), images and videos (grids in patches) per row; odd sizes, whole and cut windows.
ROWS = {
    "one image": [[3, (1, 10, 14), 9]],
    "whole windows": [[3, (1, 16, 16), 9]],
    "smallest": [[1, (1, 2, 2), 6]],
    "narrow": [[2, (1, 2, 46), 7]],
    "interleaved": [[4, (1, 4, 6), 5, (1, 18, 10), 1, (1, 8, 8), 8]],
    "text only": [[17]],
    "video": [[3, Video(3, 4, 18, seconds=0.75), 9]],
    "several videos": [
        [1, Video(2, 4, 4, seconds=2.0), 4, Video(1, 6, 2), 1, Video(4, 2, 4, seconds=0.3), 6]
    ],
    "images and videos": [[2, (1, 4, 6), 3, Video(3, 4, 4, seconds=4.0), 1, (1, 2, 2), 1, Video(1, 2, 6), 7]],
    "batch with videos": [[2, Video(2, 6, 4), 14], [25], [1, (1, 2, 4), 1, Video(2, 2, 4), 6]],
    "batch with padding": [[2, (1, 6, 12), 14], [25], [1, (1, 2, 4), 1, (1, 8, 34), 6]],
}


MODELS = [(family, tie) for family in tiny.FAMILIES for tie in (False, True)]


@pytest.fixture(scope="module", params=MODELS, ids=[f"{f} {'' if tie else 'un'}tied" for f, tie in MODELS])
def hf(request):
    family, tie = request.param
    return tiny.tiny_hf_model(seed=3, family=family, tie=tie)


@pytest.fixture(scope="module")
def exact(hf):
    return exact_like(hf)


@pytest.fixture(scope="module")
def ours(hf):
    return ours_like(hf)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_logits_loss_and_every_gradient(hf, exact, ours, rows):
    case = Case(hf, *rows)
    inputs = case.reference_inputs()
    exact.zero_grad()
    ours.zero_grad()
    with Exactly():
        expected = exact(**widened(inputs))
        expected.loss.backward()
    assert expected.logits.dtype == torch.float64
    batch = collate(case.samples, padding_idx=0)
    assert torch.equal(batch["labels"], inputs["labels"])

    labels = batch.pop("labels")
    logits = ours(**batch)
    real = inputs["attention_mask"].bool()
    assert of_scale(logits[real], expected.logits[real]) <= 5e-6

    loss, n = ours(**batch, labels=labels)
    assert n == (labels != -100).sum()
    assert abs(loss / n - expected.loss) <= 5e-6
    (loss / n).backward()
    gradients = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    theirs = dict(renamed(hf, gradients))
    for name, parameter in ours.named_parameters():
        if name in theirs:
            assert relative(parameter.grad, theirs[name]) <= 1e-5, name
        else:
            unused = rows == ROWS["text only"] and name.startswith("vision_encoder")
            assert unused or name.endswith("correction_bias"), name


@pytest.mark.parametrize("as_video", [False, True], ids=["images", "videos"])
def test_visual_tokens_and_every_deepstack_feature(exact, ours, as_video):
    """Videos through transformers' way for videos, which is GLM's frames one by one."""
    grids = [(1, 16, 24), (1, 2, 2), (1, 18, 6)]
    if as_video:
        grids = [(3, 12, 10), (1, 4, 4), (2, 18, 6)]
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), ours.vision_encoder.patch_embed.in_features)
    encode = exact.model.get_video_features if as_video else exact.model.get_image_features
    with torch.no_grad():
        with Exactly():
            expected = encode(pixels.double(), torch.tensor(grids), return_dict=True)
        tokens, deepstack = ours.vision_encoder(pixels, torch.tensor(grids), return_deepstack=True)
        theirs = [expected.pooler_output, *(getattr(expected, "deepstack_features", None) or ())]
        theirs = [torch.cat(feature) for feature in theirs]  # one per image or clip
        for feature, reference in zip([tokens, *deepstack], theirs, strict=True):
            assert (feature - reference).abs().max() <= 1e-5
        assert torch.equal(
            ours.vision_encoder(pixels, grids), ours.vision_encoder(pixels, torch.tensor(grids))
        )


def test_the_bounds_would_catch_a_small_mistake(hf, ours):
    """An epsilon of 1e-4 instead of 1e-6 in one norm of the decoder is seen."""
    batch = collate(Case(hf, *ROWS["one image"]).samples, padding_idx=0)
    batch.pop("labels")
    before = ours(**batch)
    norm = ours.decoder.layers[0].mlp_norm
    norm.eps = 1e-4
    try:
        assert of_scale(ours(**batch), before) > 5e-6
    finally:
        norm.eps = 1e-6


def test_chunks_of_the_loss_and_of_the_logits_change_nothing(hf):
    case = Case(hf, *ROWS["batch with padding"], labelled=5)
    whole, chunked = ours_like(hf), ours_like(hf, loss_chunk_tokens=4)
    batch = collate(case.samples, padding_idx=0)
    losses = []
    for model in (whole, chunked):
        loss, n = model(**batch)
        loss.backward()
        losses.append(loss / n)
    assert abs(losses[0] - losses[1]) <= 5e-6
    for (name, one), other in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        assert not one.requires_grad or relative(other.grad, one.grad) <= 1e-5, name
    batch.pop("labels")
    logits = whole(**batch)
    whole.set_num_output_chunks(3)
    assert torch.equal(torch.cat(whole(**batch), dim=1), logits)


def test_a_batch_without_a_label_gives_zero_and_zero_gradients(hf):
    model = ours_like(hf).train()
    batch = collate(Case(hf, [9], [4], labelled=0).samples, padding_idx=0)
    loss, n = model(**batch)
    loss.backward()
    assert loss == 0 and n == 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and not parameter.grad.any(), name
