"""Maps, colours that compare between pictures, similarity, and the drawing itself."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from torchtune_qwenvl.vision import TokenColours, VisionPipeline, similarity_map, visualize_tokens


def test_colours_are_the_principal_components(tmp_path):
    """Three directions of known spread are found, and the same colours come from the file."""
    axes, _ = torch.linalg.qr(torch.randn(8, 8))
    spread = torch.tensor([5.0, 3.0, 2.0, 0.1, 0.1, 0.1, 0.1, 0.1])
    tokens = torch.randn(4000, 8) * spread @ axes.T + 7
    colours = TokenColours.fit([tokens[:1000], tokens[1000:]])
    aligned = (colours.directions.T @ axes[:, :3]).abs()
    assert torch.allclose(aligned, torch.eye(3), atol=0.1)
    torch.testing.assert_close(colours.scale, spread[:3], rtol=0.1, atol=0)
    shown = colours(tokens.view(40, 100, 8))
    assert shown.shape == (40, 100, 3) and shown.min() >= 0 and shown.max() <= 1
    colours.save(tmp_path / "colours.safetensors")
    again = TokenColours.load(tmp_path / "colours.safetensors")
    assert torch.equal(again(tokens), colours(tokens))
    same = TokenColours.fit([tokens])
    torch.testing.assert_close(same(tokens), colours(tokens))
    with pytest.raises(ValueError, match="at least 4 tokens"):
        TokenColours.fit([tokens[:2]])


def test_similarity_is_one_at_its_place_and_by_angle_elsewhere():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 3.0], [-1.0, 0.0]]])
    torch.testing.assert_close(similarity_map(tokens, (0, 0)), torch.tensor([[1.0, 0.0], [0.5**0.5, -1.0]]))
    with pytest.raises(ValueError, match="2 rows and 2 columns"):
        similarity_map(tokens, (2, 0))


def test_the_drawing(tmp_path):
    picture = tiny.photo(56, 84)
    pipeline = VisionPipeline.from_builder("vit_small", depth=1, embed_dim=32, num_heads=2)
    features = pipeline(picture)
    visualize_tokens(features, tmp_path / "one.png", "Tokens", image=picture, place=(1, 2))
    with Image.open(tmp_path / "one.png") as drawn:
        assert drawn.width > drawn.height and np.asarray(drawn.convert("RGB")).std() > 10
    found = visualize_tokens(features.tokens[0], grid=(4, 6))
    assert found is not None and found.width > 100
    for tokens in (torch.randn(1, 16, 8), torch.randn(16, 8), torch.randn(3, 5, 8), np.ones((16, 8))):
        assert visualize_tokens(tokens) is not None
    with pytest.raises(ValueError, match="15 tokens do not fill 4 x 4"):
        visualize_tokens(torch.randn(15, 8))
    with pytest.raises(ValueError, match="one still image"):
        visualize_tokens(pipeline([picture, picture]))
