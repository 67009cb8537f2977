"""The pipeline: batches against single images, what it takes and returns, streams, and its errors."""

import io

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny_families import FAMILIES
from torch import nn

from torchtune_qwenvl.vision import VisionPipeline, save_vision_encoder
from torchtune_qwenvl.vision.inputs import token_grid

SIZES = [(56, 84), (140, 56), (90, 90), (30, 200)]


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request, tmp_path_factory):
    folder = tiny.save_tiny_folder(tmp_path_factory.mktemp("pipeline") / "whole", family=request.param)
    return VisionPipeline.from_checkpoint(folder, max_pixels=40_000)


@pytest.fixture(scope="module")
def vit():
    return VisionPipeline.from_builder("vit_small", depth=2, embed_dim=32, num_heads=2, img_size=56)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, (height, width) in enumerate(SIZES * 3):
        tiny.photo(height, width, seed=i).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(3 * len(SIZES))]


def close(ours, expected):
    return (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_mixed_batch_is_its_images_one_by_one(pipeline, photos):
    for at in ("merged", "patches"):
        batch = pipeline(photos, at=at, pool="mean")
        for i, photo in enumerate(photos):
            alone = pipeline(photo, at=at, pool="mean")
            assert batch.grids[i] == alone.grids[0]
            assert close(batch.tokens[i], alone.tokens[0]) and close(batch.pooled[i], alone.pooled[0])
            assert batch.map(i).shape == (*batch.grids[i], batch.tokens[i].shape[-1])


@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_gives_the_same_in_the_same_order(pipeline, photos, batch_tokens, workers):
    expected = pipeline(photos)
    stream = pipeline.stream(photos, batch_tokens=batch_tokens, workers=workers)
    found = [(path, tokens) for part in stream for path, tokens in zip(part.paths, part.tokens, strict=True)]
    assert [path for path, _ in found] == photos and not stream.failed
    for (_, tokens), wanted in zip(found, expected.tokens, strict=True):
        assert close(tokens, wanted)


def test_layers_merged_and_deepstack(pipeline):
    image = tiny.photo(56, 140, seed=1)
    last = pipeline.encoder.depth - 1
    found = pipeline(image, layers=[0, -1])
    assert list(found.layers) == [0, last] and torch.equal(found.tokens[0], found.layers[last].tokens[0])
    assert found.tokens[0].shape[-1] == pipeline.encoder.embed_dim
    merged = pipeline(image, layers=-1, at="merged")
    assert torch.equal(merged.tokens[0], pipeline(image).tokens[0])
    assert len(merged.deepstack) == len(pipeline.encoder.deepstack_mergers)
    for features in merged.deepstack:
        assert features[0].shape == merged.tokens[0].shape


def test_clips_beside_stills(pipeline):
    frames = [np.asarray(tiny.photo(60, 90, seed=i)) for i in range(4)]
    still = tiny.photo(60, 90, seed=9)
    both = pipeline(still, videos=[frames])
    assert len(both) == 2 and both.grids[1][0] == 2
    assert close(both.tokens[1], pipeline(videos=[frames]).tokens[0])
    assert close(both.tokens[0], pipeline(still).tokens[0])


def test_every_kind_of_image_is_the_same_image(vit, tmp_path):
    array = np.asarray(tiny.photo(60, 70, seed=2))
    Image.fromarray(array).save(tmp_path / "x.png")
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    images = [
        *(str(tmp_path / "x.png"), tmp_path / "x.png", data.getvalue(), Image.fromarray(array), array),
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    found = vit(images).stacked()
    assert found.shape == (6, 16, 32)
    for tokens in found[1:]:
        assert close(tokens, found[0])


def test_what_comes_out(vit):
    features = vit([tiny.photo(40, 40)] * 2, pool="max")
    assert features.stacked().shape == (2, 16, 32) and len(features) == 2
    assert features.numpy()[0].dtype == np.float32 and len(features.tolist()[0]) == 16
    assert torch.equal(features.pooled, features.stacked().amax(1))
    assert features.to(torch.float64).tokens[0].dtype == torch.float64
    assert vit(tiny.photo(40, 40), pool=nn.Sequential(nn.Flatten(0), nn.Linear(16 * 32, 5))).pooled.shape == (
        1,
        5,
    )
    native = VisionPipeline.from_builder("vit_small", depth=1, embed_dim=32, num_heads=2)
    with pytest.raises(ValueError, match="from 9 to 12 tokens: they cannot be stacked"):
        native([tiny.photo(42, 42), tiny.photo(42, 56)]).stacked()


@pytest.mark.parametrize(
    "tokens, height, width, expected",
    [(256, 480, 640, (16, 16)), (256, 300, 1000, (8, 32)), (12, 50, 10, (6, 2)), (7, 9, 9, (1, 7))],
)
def test_exact_token_counts(tokens, height, width, expected):
    assert token_grid(tokens, height, width) in (expected, expected[::-1] if height == width else expected)


def test_a_number_of_tokens_holds_for_every_image(tmp_path):
    folder = tiny.save_tiny_folder(tmp_path / "whole")
    pipeline = VisionPipeline.from_checkpoint(folder, tokens=12)
    assert pipeline([tiny.photo(*size) for size in SIZES]).stacked().shape[:2] == (4, 12)
    with pytest.raises(ValueError, match="size or tokens"):
        VisionPipeline.from_checkpoint(folder, tokens=12, size=(28, 28))
    with pytest.raises(ValueError, match="multiples of"):
        VisionPipeline.from_checkpoint(folder, size=(30, 28))
    fixed = VisionPipeline.from_checkpoint(folder, size=(56, 84))
    assert fixed([tiny.photo(*size) for size in SIZES]).stacked().shape[:2] == (4, 2 * 3)


def test_gradients_flow_after_train_and_into_a_projection_in_any_case(vit):
    image = tiny.photo(56, 56)
    tokens = vit(image).tokens[0]
    assert not tokens.requires_grad
    projection = nn.Linear(32, 8)
    projection(tokens).sum().backward()  # no tensor of inference mode
    assert projection.weight.grad.any()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.vision, self.projection = vit, projection

        def forward(self, images):
            return self.projection(self.vision(images).tokens[0])

    whole = Whole().train()
    whole(image).square().sum().backward()
    assert all(p.grad is not None for p in whole.parameters())
    vit.eval()
    vit.zero_grad()


def test_autocast_and_bf16(vit):
    image = tiny.photo(56, 56)
    exact = vit(image, pool="mean").pooled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = vit(image, pool="mean").pooled
    assert torch.cosine_similarity(mixed.float(), exact) > 0.999


def test_depth_is_a_channel_and_alpha_is_not():
    """A fourth channel that starts at zero leaves the RGB encoder's tokens as they are, to the last bit."""
    rgb = VisionPipeline.from_builder("vit_small", depth=2, embed_dim=32, num_heads=2, img_size=28)
    half = [0.5] * 4
    with_depth = VisionPipeline.from_builder(
        "vit_small",
        depth=2,
        embed_dim=32,
        num_heads=2,
        img_size=28,
        in_channels=4,
        image_mean=half,
        image_std=half,
    )
    assert with_depth.encoder.patch_embed.weight.shape[1] == 4 * 14 * 14
    picture, depth = tiny.photo(30, 40), np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)
    one = with_depth({"image": picture, "depth": depth}).tokens[0]
    array = np.concatenate([np.asarray(picture) / np.float32(255), depth[..., None]], -1)
    assert close(with_depth(array).tokens[0], one)
    sixteen_bits = Image.fromarray((depth * 65535).round().astype(np.uint16))
    assert (with_depth({"image": picture, "depth": sixteen_bits}).tokens[0] - one).abs().max() < 1e-3
    with pytest.raises(ValueError, match="alpha is no depth"):
        with_depth(picture.convert("RGBA"))
    with pytest.raises(ValueError, match="expected an image of 4 channels, got 3"):
        with_depth(np.asarray(picture))
    with pytest.raises(ValueError, match="floats from 0 to 1"):
        with_depth(array * 255)
    with pytest.raises(ValueError, match="expected one size"):
        with_depth({"image": picture, "depth": depth[:20]})
    assert rgb(picture.convert("RGBA")).tokens[0].shape == (4, 32)  # alpha on white


def test_bad_input_is_a_clear_error(vit, tmp_path, photos):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="there is no text tower"):
        vit("a photo of a cat")
    with pytest.raises(ValueError, match="this encoder has no cls token"):
        vit(photos[0], pool="cls")
    with pytest.raises(ValueError, match="pool: expected one of mean, max, cls"):
        vit(photos[0], pool="sum")
    with pytest.raises(ValueError, match="at least one image or video, got none"):
        vit([])
    with pytest.raises(ValueError, match="at least one image, got none"):
        vit.stream([])
    with pytest.raises(ValueError, match="takes no videos"):
        vit(videos=[[np.zeros((28, 28, 3), np.uint8)] * 2])
    with pytest.raises(ValueError, match="layers"):
        vit(photos[0], layers=99)
    with pytest.raises(ValueError, match=r"broken.jpg"):
        vit(tmp_path / "broken.jpg")
    with pytest.raises(ValueError, match="no builder called 'vit_huge'"):
        VisionPipeline.from_builder("vit_huge")
    paths = [photos[0], str(tmp_path / "broken.jpg"), photos[1]]
    with pytest.raises(ValueError, match=r"broken.jpg.*on_bad='skip'"):
        list(vit.stream(paths, workers=0))
    stream = vit.stream(paths, workers=0, on_bad="skip")
    assert [path for part in stream for path in part.paths] == [photos[0], photos[1]]
    assert [failed.path for failed in stream.failed] == [paths[1]]


def test_the_fingerprint_tells_weights_and_settings_apart(tmp_path):
    source = tiny.save_tiny_folder(tmp_path / "whole")
    one, same = VisionPipeline.from_checkpoint(source), VisionPipeline.from_checkpoint(source)
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != VisionPipeline.from_checkpoint(source, max_pixels=40_000).fingerprint
    with torch.no_grad():
        same.encoder.layers[0].attn.q_proj.weight[0, 0] += 1
    changed = save_vision_encoder(same.encoder, tmp_path / "changed", source=source)
    assert one.fingerprint != VisionPipeline.from_checkpoint(changed).fingerprint
