"""The snippets of the two guides whose names the package keeps, at a small size and with our import line."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from torchtune_qwenvl.vision import (
    ImagePreprocessor,
    Qwen3VisionTransformer,
    Qwen3VLPipeline,
    TokenPostprocessor,
    VisionConfig,
    VisionModel,
    VisionPipeline,
    VisionProcessor,
    create_glm4v_vision_encoder,
    create_qwen3_vl_vit,
    encode_image,
    encode_images,
)
from torchtune_qwenvl.vision.guides import qwen3_vl_vit as guide

SMALL = {"depth": 2, "hidden_size": 48, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 40}


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    """The guide's base model, 48 instead of 1024 wide."""
    monkeypatch.setattr(guide, "SIZES", {"small": (32, 1, 2), "base": (48, 2, 2), "large": (64, 3, 2)})


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)


def test_process_image_and_batch(image, tmp_path):
    pipeline = Qwen3VLPipeline(model_size="base", device="cpu")
    tokens = pipeline.process_image(image)
    assert tokens.shape == (1, 256, 48)
    paths = []
    for i in range(3):
        tiny.photo(100, 150, seed=i).save(tmp_path / f"image{i}.jpg")
        paths.append(str(tmp_path / f"image{i}.jpg"))
    batch = pipeline.process_batch(paths)
    assert batch.shape == (3, 256, 48)
    torch.testing.assert_close(batch[1:2], pipeline.process_image(paths[1]), rtol=1e-5, atol=1e-5)
    assert pipeline.process_image(image, return_numpy=True).dtype == np.float32
    info = pipeline.get_pipeline_info()
    assert info["num_patches"] == 256 and info["embed_dim"] == 48 and info["model_size"] == "base"


@pytest.mark.parametrize("strategy", ["mean", "max"])
def test_pooling_keeps_an_axis(image, strategy):
    pipeline = Qwen3VLPipeline(pooling_strategy=strategy, device="cpu")
    assert pipeline.process_image(image).shape == (1, 1, 48)


def test_pooling_by_a_cls_token_that_is_not_there():
    with pytest.raises(ValueError, match="no cls token"):
        Qwen3VLPipeline(pooling_strategy="cls")
    with pytest.raises(ValueError, match="model_size: expected one of small, base, large"):
        Qwen3VLPipeline(model_size="huge")


def test_step_by_step(image, tmp_path):
    tiny.photo(300, 200).save(tmp_path / "image.jpg")
    model = create_qwen3_vl_vit(model_size="base", img_size=224, patch_size=14)
    model.eval()
    preprocessor = ImagePreprocessor(img_size=224)
    image_tensor = preprocessor.preprocess(str(tmp_path / "image.jpg"))
    assert image_tensor.shape == (1, 3, 224, 224) and image_tensor.dtype == torch.float32
    with torch.no_grad():
        tokens = model(image_tensor)
    assert tokens.shape == (1, 256, 48)
    tensors = [preprocessor.preprocess(img) for img in (image, image)]
    batch = torch.cat(tensors)
    assert torch.equal(batch, preprocessor.preprocess_batch([image, image]))
    assert model(batch).shape == (2, 256, 48)
    assert preprocessor.load_image(tmp_path / "image.jpg").size == (200, 300)
    with pytest.raises(ValueError, match="expected images"):
        model(torch.zeros(1, 3, 100, 100))


def test_tokens_are_in_reading_order(image):
    """Token i is patch i, row by row: of 16 x 16, T16 is the first of the second row."""
    model = create_qwen3_vl_vit("small")
    pixels = torch.randn(1, 3, 224, 224)
    seen = {}
    model.encoder.patch_embed.register_forward_hook(lambda _, args, out: seen.update(patches=args[0]))
    model(pixels)
    assert torch.equal(seen["patches"][16].view(3, 14, 14), pixels[0, :, 14:28, :14])
    assert model.get_num_patches() == 256 and model.get_embed_dim() == 32


def test_preprocessing_is_imagenets(image):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(ImagePreprocessor().preprocess(image)[0], expected)


def test_custom_configuration():
    model = Qwen3VisionTransformer(
        img_size=28,
        patch_size=14,
        in_channels=3,
        embed_dim=48,
        depth=2,
        num_heads=4,
        mlp_ratio=2.0,
        dropout=0.1,
    )
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, 4, 48)
    with pytest.raises(ValueError, match="no multiple"):
        Qwen3VisionTransformer(img_size=30)


def test_what_can_be_done_with_tokens(image):
    tokens = Qwen3VLPipeline(device="cpu").process_image(image)
    lm_tokens = nn.Linear(48, 64)(tokens)
    text_tokens = torch.randn(1, 5, 64)
    combined = torch.cat([text_tokens, lm_tokens], dim=1)
    assert combined.shape == (1, 261, 64)
    importance = tokens.norm(dim=-1).squeeze()
    assert importance.topk(10).indices.shape == (10,) and tokens.mean(dim=1).shape == (1, 48)
    post = TokenPostprocessor("mean")
    assert isinstance(post.to_list(tokens), list) and post.to_numpy(tokens).shape == (1, 256, 48)
    assert post(tokens).shape == (1, 1, 48)


def test_as_a_part_of_a_multimodal_model(image):
    class MultimodalModel(nn.Module):
        def __init__(self, language_model):
            super().__init__()
            self.vision_model = Qwen3VLPipeline(model_size="base", device="cpu")
            self.projection = nn.Linear(48, 64)
            self.language_model = language_model

        def forward(self, image, text_tokens):
            visual_tokens = self.projection(self.vision_model.process_image(image))
            return self.language_model(torch.cat([visual_tokens, text_tokens], dim=1))

    model = MultimodalModel(nn.Identity())
    out = model(image, torch.randn(1, 3, 64))
    assert out.shape == (1, 259, 64)
    out.sum().backward()
    assert model.projection.weight.grad.any()
    assert any(name.startswith("vision_model.model.encoder") for name, _ in model.named_parameters())


def test_glm_basic_usage():
    config, model, processor = create_glm4v_vision_encoder(VisionConfig(**SMALL))
    inputs = processor(images=[tiny.photo(224, 224), tiny.photo(112, 168)], return_tensors="pt")
    embeddings = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    assert [e.shape for e in embeddings] == [(64, 32), (24, 32)]
    assert config.out_hidden_size == 32


def test_glm_default_configuration_on_meta():
    with torch.device("meta"):
        model, released = VisionModel(VisionConfig()), VisionModel(VisionConfig(temporal_patch_size=2))
    assert sum(p.numel() for p in model.parameters()) == 891_595_264
    assert sum(p.numel() for p in released.parameters()) == 892_498_432
    with torch.device("meta"):  # the guide's "larger model": patches of 12 pixels at an image of 448
        VisionModel(VisionConfig(hidden_size=2048, depth=1, num_heads=16, patch_size=12, image_size=448))


def test_glm_numbers_of_patches_and_refusals():
    processor = VisionProcessor()
    sizes = [processor.get_number_of_image_patches(side, side) for side in (224, 336, 448)]
    assert sizes == [256, 576, 1024]
    with pytest.raises(ValueError, match="attention_dropout"):
        VisionConfig(attention_dropout=0.1)
    with pytest.raises(ValueError, match="hidden_act"):
        VisionConfig(hidden_act="gelu")
    with pytest.raises(ValueError, match="images or videos"):
        processor()
    with pytest.raises(ValueError, match="return_tensors"):
        processor(images=[tiny.photo(28, 28)], return_tensors="np")


def test_glm_encode_image_and_images(tmp_path):
    _, model, processor = create_glm4v_vision_encoder(VisionConfig(**SMALL))
    paths = []
    for i in range(3):
        tiny.photo(112, 112 + 28 * i, seed=i).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    one, grid = encode_image(paths[0], model, processor, return_grid=True)
    assert one.shape == (16, 32) and grid.tolist() == [[1, 8, 8]]
    for batch_size in (1, 2, 3):
        for path, found in zip(paths, encode_images(paths, model, processor, batch_size), strict=True):
            torch.testing.assert_close(found, encode_image(path, model, processor), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="batch_size"):
        encode_images(paths, model, batch_size=0)
    vit = VisionPipeline.from_builder("vit_small", depth=1, embed_dim=32, num_heads=2, img_size=28)
    assert encode_image(paths[0], vit).shape == (4, 32) and len(encode_images(paths, vit)) == 3


def test_glm_classifier_snippet():
    class VisionClassifier(nn.Module):
        def __init__(self, vision_encoder, num_classes):
            super().__init__()
            self.vision_encoder = vision_encoder
            self.classifier = nn.Linear(vision_encoder.config.out_hidden_size, num_classes)

        def forward(self, pixel_values, image_grid_thw):
            embeddings = self.vision_encoder.get_image_features(pixel_values, image_grid_thw)
            pooled = torch.stack([emb.mean(dim=0) for emb in embeddings])
            return self.classifier(pooled)

    model = VisionClassifier(VisionModel(VisionConfig(**SMALL)), 5)
    inputs = VisionProcessor(VisionConfig(**SMALL))(images=[tiny.photo(56, 56)] * 2)
    logits = model(inputs["pixel_values"], inputs["image_grid_thw"])
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("frames", [1, 2])
def test_glm_original_weights_and_folders(tmp_path, frames):
    """With two frames per patch as released, and with one: the same tokens of a still."""
    hf = tiny.tiny_hf_model(family="glm4v")
    sizes = VisionConfig.from_dict(hf.config.to_dict())
    model = VisionModel(VisionConfig(**{**vars(sizes), "temporal_patch_size": frames})).eval()
    model.load_state_dict(hf.model.visual.state_dict())
    image = tiny.photo(60, 90)
    released = VisionProcessor(sizes)(images=[image])
    with torch.no_grad():
        grid = released["image_grid_thw"]
        expected = hf.model.visual(released["pixel_values"], grid_thw=grid, return_dict=True).pooler_output
        processor = VisionProcessor(model.config, min_pixels=9408, max_pixels=9408)
        same = VisionProcessor(sizes, min_pixels=9408 * 2 // frames, max_pixels=9408 * 2 // frames)
        assert processor is not same
        patches = released["pixel_values"].unflatten(1, (3, 2, -1))[:, :, :frames].flatten(1)
        found = model.get_image_features(patches, grid)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    if frames == 1:
        with pytest.raises(ValueError, match="clips"):
            model.get_video_features(patches, grid)
        return
    again = VisionModel.from_pretrained(model.save_pretrained(tmp_path / "encoder"))
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    from transformers import AutoModel

    theirs, info = AutoModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.depth == sizes.depth


def test_glm_clips():
    config = VisionConfig(**SMALL, temporal_patch_size=2)
    frames = [np.asarray(tiny.photo(56, 84, seed=i)) for i in range(4)]
    inputs = VisionProcessor(config)(videos=[frames], return_tensors="pt")
    assert inputs["video_grid_thw"].tolist()[0][0] == 2
    found = VisionModel(config).get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    assert len(found) == 1 and found[0].shape[1] == 32


def test_glm_debug_log(caplog):
    import logging

    with caplog.at_level(logging.DEBUG):
        _, model, processor = create_glm4v_vision_encoder(VisionConfig(**SMALL))
        encode_image(tiny.photo(56, 56), model, processor)
    assert "resized to" in caplog.text and "encoded" in caplog.text
