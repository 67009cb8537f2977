"""Our model in fp32 against a true fp64 run of transformers', tiny and random.

Visual tokens, logits, loss and every gradient.

The bounds are those a correct fp32 implementation keeps to such a run; they are never widened. Delta nets
amplify rounding, in transformers' fp32 up to gradients that are off by 5e-4. There ours runs in fp64, too,
with bounds a thousand times tighter, and over many runs in fp32 it must err less than transformers' own.
"""

import copy
import math

import pytest
import tiny
import torch
from cases import (
    DELTA_NETS,
    Case,
    Exactly,
    Video,
    as_wide_as,
    exact_like,
    of_scale,
    ours_like,
    relative,
    renamed,
    widened,
)
from faults.campaign import campaign_size

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


FP32 = {"logits": 5e-6, "loss": 5e-6, "gradient": 1e-5}
FP64 = {
    "logits": 1e-11,
    "loss": 1e-6,
    "gradient": 1e-6,
}  # the loss is taken in fp32, and so are its gradients
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


@pytest.fixture(scope="module")
def subject(hf, ours):
    """The model that is compared, and the bounds."""
    if hf.config.model_type in DELTA_NETS:
        return copy.deepcopy(ours).double(), FP64
    return ours, FP32


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_logits_loss_and_every_gradient(hf, exact, subject, rows):
    case = Case(hf, *rows)
    inputs, (ours, bounds) = case.reference_inputs(), subject
    exact.zero_grad()
    ours.zero_grad()
    with Exactly():
        expected = exact(**widened(inputs))
        expected.loss.backward()
    assert expected.logits.dtype == torch.float64
    batch = collate(case.samples, padding_idx=0)
    assert torch.equal(batch["labels"], inputs["labels"])
    logits, loss, n = run(ours, batch)
    assert n == (batch["labels"] != -100).sum()
    real = inputs["attention_mask"].bool()
    assert of_scale(logits[real], expected.logits[real]) <= bounds["logits"]
    assert abs(loss / n - expected.loss) <= bounds["loss"]
    theirs = gradients_of(exact, hf)
    for name, parameter in ours.named_parameters():
        if name in theirs:
            assert relative(parameter.grad, theirs[name]) <= bounds["gradient"], name
        else:
            unused = rows == ROWS["text only"] and name.startswith("vision_encoder")
            assert unused or name.endswith("correction_bias"), name


def run(ours, batch):
    """Logits, sum of the losses and number of labels, with gradients of their mean; in the model's dtype."""
    with as_wide_as(ours, batch) as batch:
        loss, n = ours(**batch)
        (loss / n).backward()
        return ours(**{name: x for name, x in batch.items() if name != "labels"}), loss, n


def gradients_of(model, hf):
    return dict(renamed(hf, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))


def reference_errors(hf, inputs, expected, exactly):
    """What transformers' own fp32 reaches: the errors of the logits and of the worst gradient."""
    hf.zero_grad()
    out, real = hf(**inputs), inputs["attention_mask"].bool()
    out.loss.backward()
    theirs = gradients_of(hf, hf)
    return {
        "logits": of_scale(out.logits[real], expected.logits[real]),
        "gradient": max(relative(theirs[name], exactly[name]) for name in exactly),
    }


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


@pytest.mark.parametrize("family", DELTA_NETS)
def test_ours_errs_less_than_the_reference_itself(family):
    """Logits and worst gradients of several models and rows, over those of transformers' own fp32."""
    ratios = []
    for seed in range(campaign_size(3, 12)):
        hf = tiny.tiny_hf_model(seed=seed, family=family)
        ours, exact = ours_like(hf), exact_like(hf)
        for rows in (ROWS["one image"], ROWS["text only"], ROWS["batch with videos"]):
            case = Case(hf, *rows, seed=seed)
            inputs, batch = case.reference_inputs(), collate(case.samples, padding_idx=0)
            ours.zero_grad()
            exact.zero_grad()
            with Exactly():
                expected = exact(**widened(inputs))
                expected.loss.backward()
            logits, _, _ = run(ours, batch)
            real, exactly = inputs["attention_mask"].bool(), gradients_of(exact, hf)
            theirs = reference_errors(hf, inputs, expected, exactly)
            error = of_scale(logits[real], expected.logits[real])
            worst = max(relative(p.grad, exactly[n]) for n, p in ours.named_parameters() if n in exactly)
            ratios += [math.log(error / theirs["logits"]), math.log(worst / theirs["gradient"])]
    ratio = math.exp(sum(ratios) / len(ratios))
    print(f"{family}: our errors are {ratio:.2f} of transformers'")
    assert ratio <= 1


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
