"""The vision encoder alone, the four kinds of pixels, autocast, and messages for what does not fit."""

import copy

import pytest
import tiny
import torch
from cases import Case, of_scale, ours_like

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.models.qwen2_5_vl import qwen2_5_vl_vision_encoder

GRIDS = [(1, 10, 14), (1, 8, 4)]
N = sum(t * h * w for t, h, w in GRIDS)
SCALE = {"image_mean": tiny.IMAGE_MEAN, "image_std": tiny.IMAGE_STD}


@pytest.fixture(scope="module")
def hf():
    return tiny.tiny_hf_model(seed=8)


@pytest.fixture(scope="module")
def raw():
    """uint8 stills [n, c * p * p]."""
    return torch.randint(0, 256, (N, 3 * 196), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def normalised(raw: torch.Tensor, frames: int = 2, dtype=torch.float32) -> torch.Tensor:
    """What the reference's processor ships for stills: normalised, every frame repeated."""
    mean, std = (torch.tensor(x, dtype=dtype)[:, None] * 255 for x in (tiny.IMAGE_MEAN, tiny.IMAGE_STD))
    values = (raw.view(-1, 3, 196).to(dtype) - mean) / std
    return values[:, :, None].expand(-1, 3, frames, 196).reshape(len(raw), -1)


def test_all_kinds_of_pixels_give_the_same_tokens_and_gradients(hf, raw):
    model = ours_like(hf, **SCALE)
    encoder = model.vision_encoder
    clip = raw.view(-1, 3, 1, 196).expand(-1, 3, 2, 196).reshape(N, -1)
    results = []
    for pixels in (normalised(raw), normalised(raw, frames=1), raw, clip):
        encoder.zero_grad()
        tokens = encoder(pixels, GRIDS)
        tokens.square().sum().backward()
        results.append((tokens.detach(), encoder.patch_embed.weight.grad))
    with torch.no_grad():
        expected = hf.model.visual(normalised(raw), torch.tensor(GRIDS)).pooler_output
    for tokens, gradient in results:
        assert of_scale(tokens, expected) <= 1e-5
        assert of_scale(gradient, results[0][1]) <= 1e-5


def test_bf16_from_raw_pixels_is_as_close_to_fp64_as_the_reference(hf, raw):
    """Error of our bf16 tokens from uint8 pixels against that of transformers' bf16 from bf16 floats."""
    ours = ours_like(hf, **SCALE).double()
    half, half_hf = copy.deepcopy(ours).bfloat16(), copy.deepcopy(hf.model.visual).bfloat16()
    for parameter, rounded in zip(ours.parameters(), half.parameters(), strict=True):
        parameter.data.copy_(rounded)  # the same rounded weights on all sides
    with torch.no_grad():
        exact = ours.vision_encoder(normalised(raw, dtype=torch.float64), GRIDS)
        theirs = half_hf(normalised(raw).bfloat16(), torch.tensor(GRIDS)).pooler_output
        error = (half.vision_encoder(raw, GRIDS) - exact).norm() / (theirs - exact).norm()
    assert error <= 1.5


def test_autocast_keeps_fp32_weights_and_a_bf16_stream(hf):
    model = ours_like(hf).train()
    batch = collate(Case(hf, [3, (1, 10, 6), 6]).samples, padding_idx=0)
    streams = []
    for layer in (*model.vision_encoder.layers, *model.decoder.layers):
        layer.register_forward_hook(lambda _m, _i, out: streams.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss, n = model(**batch)
    (loss / n).backward()
    assert set(streams) == {torch.bfloat16} and loss.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    exact, _ = ours_like(hf)(**batch)
    assert abs(loss - exact) / exact < 0.02


def test_the_encoder_stands_alone(raw):
    encoder = qwen2_5_vl_vision_encoder(
        depth=2, width=32, num_heads=2, inner_width=48, out_width=24, full_attention=[1], **SCALE
    )
    tokens = encoder(raw, torch.tensor(GRIDS))
    assert tokens.shape == (N // 4, 24)
    alone = torch.cat([encoder(raw[:140], GRIDS[:1]), encoder(raw[140:], GRIDS[1:])])
    assert torch.allclose(tokens, alone, atol=1e-6)


def test_activation_checkpointing_changes_nothing(hf):
    from torchtune.modules import TransformerSelfAttentionLayer
    from torchtune.training import set_activation_checkpointing

    batch = collate(Case(hf, [3, (1, 10, 6), 6]).samples, padding_idx=0)
    plain, wrapped = ours_like(hf), ours_like(hf)
    set_activation_checkpointing(wrapped, auto_wrap_policy={TransformerSelfAttentionLayer})
    losses = [model(**batch)[0] for model in (plain, wrapped)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize(
    ("pixels", "grids", "message"),
    [
        (torch.zeros(N, 600), GRIDS, "expected 1176 values per patch, 588 for stills, got 600"),
        (torch.zeros(N - 1, 1176), GRIDS, "describes 172 patches, pixel_values has 171"),
        (torch.zeros(6, 1176), [(1, 3, 2)], r"\(1, 3, 2\).*multiples of the merge size 2"),
        (torch.zeros(4, 1176), [(1, 2, 2), (0, 2, 2)], r"\(0, 2, 2\).*expected positive"),
        (torch.zeros(N, 588, dtype=torch.uint8), GRIDS, "without image_mean and image_std"),
    ],
)
def test_pixels_that_do_not_fit(hf, pixels, grids, message):
    with pytest.raises(ValueError, match=message):
        ours_like(hf).vision_encoder(pixels, grids)


def test_features_and_placeholders_must_agree(hf):
    model = ours_like(hf)
    batch = collate(Case(hf, [3, (1, 4, 6), 6]).samples, padding_idx=0)
    with pytest.raises(ValueError, match="6 placeholders of visual tokens, but no images"):
        model(batch["tokens"])
    with pytest.raises(ValueError, match="input_pos is missing"):
        model(batch["tokens"], encoder_input=batch["encoder_input"])
    batch["tokens"][batch["tokens"] == hf.config.image_token_id] = 1
    with pytest.raises(ValueError, match="give 6 visual tokens, the tokens have 0 placeholders"):
        model(**batch)
    with pytest.raises(ValueError, match="mask: expected None"):
        model(batch["tokens"], mask=torch.ones(1))
    with pytest.raises(ValueError, match="3 numbers each"):
        ours_like(hf, image_mean=[0.5], image_std=[0.5])


def test_a_layout_from_the_host_gives_the_same_loss(hf):
    model = ours_like(hf)
    batch = collate(Case(hf, [3, (1, 4, 6), 6], [9]).samples, padding_idx=0)
    layout = batch.pop("layout")
    visual = (batch["tokens"].flatten() == hf.config.image_token_id).nonzero().flatten()
    loss, n = model(**batch)
    for given in (layout, {**layout, "visual": visual}):
        again, same = model(**batch, layout=given)
        assert torch.equal(loss, again) and n == same


def test_the_statistics_of_images_go_to_a_device_once_and_into_no_state(hf, raw):
    embed = ours_like(hf, **SCALE).vision_encoder.patch_embed
    names = embed.state_dict().keys()
    first, again = embed(raw), embed(raw)
    kept = embed._scale_there
    assert torch.equal(first, again) and kept.device == raw.device
    assert embed(raw) is not None and embed._scale_there is kept
    assert embed.state_dict().keys() == names and not list(embed.buffers())
