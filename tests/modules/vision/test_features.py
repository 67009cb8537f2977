"""Features of every layer against transformers' blocks, put back by its own index."""

import pytest
import tiny
import torch
from tiny_families import FAMILIES

from torchtune_qwenvl import load_vision_encoder
from torchtune_qwenvl.models.vit import classic_vit, vit
from torchtune_qwenvl.modules.vision.features import layer_indexes, to_map

# Not square, with windows cut at both edges, the smallest there is, and a clip.
GRIDS = [(1, 12, 20), (1, 2, 2), (3, 6, 10)]


@pytest.fixture(scope="module", params=FAMILIES)
def towers(request, tmp_path_factory):
    """transformers' tower and ours, with the same weights."""
    hf = tiny.tiny_hf_model(seed=3, family=request.param)
    folder = tiny.save_tiny_folder(tmp_path_factory.mktemp("tower") / "source", model=hf)
    return hf.model.visual.float(), load_vision_encoder(folder)


def window_index(visual, grid_thw):
    """Which merged token transformers puts where; None for an encoder without windows."""
    if not hasattr(visual.config, "window_size"):
        return None
    if hasattr(visual, "get_window_index"):  # a method before transformers 5.20
        return visual.get_window_index(grid_thw)[0]
    from transformers.vision_utils import get_vision_window_index

    config = visual.config
    sizes = (config.spatial_merge_size, config.window_size, config.patch_size)
    return get_vision_window_index(grid_thw, *sizes)[0]


def blocks_of(visual, pixels, grids):
    """Outputs of transformers' blocks, [n, d] each, in the order of `pixels`."""
    kept = []

    def keep(_, __, out):
        kept.append(out[0] if isinstance(out, tuple) else out)

    hooks = [block.register_forward_hook(keep) for block in visual.blocks]
    # GLM's encoder takes a clip frame by frame.
    frames = (
        [(1, h, w) for t, h, w in grids for _ in range(t)] if "glm" in visual.config.model_type else grids
    )
    with torch.no_grad():
        visual(pixels, grid_thw=torch.tensor(frames))
    for hook in hooks:
        hook.remove()
    if (index := window_index(visual, torch.tensor(grids))) is None:
        return kept
    back = torch.argsort(index)
    return [x.view(len(index), -1, x.shape[-1])[back].flatten(0, 1) for x in kept]


def test_every_layer_equals_transformers_block(towers):
    visual, ours = towers
    pixels = torch.randn(sum(t * h * w for t, h, w in GRIDS), ours.patch_embed.in_features)
    theirs = blocks_of(visual, pixels, GRIDS)
    with torch.no_grad():
        kept = ours.features(pixels, GRIDS, range(ours.depth), merged=True)
        maps = ours.forward_intermediates(pixels, GRIDS, output_fmt="NLC", intermediates_only=True)
    assert len(theirs) == ours.depth
    for i, reference in enumerate(theirs):
        assert (kept.patches[i] - reference).abs().max() <= 1e-5 * reference.abs().max()
        start = 0
        for (t, h, w), image in zip(GRIDS, maps[i], strict=True):
            expected = to_map(reference[start : start + t * h * w], (t, h, w), ours.merge)
            assert (image.view(t, h, w, -1) - expected).abs().max() <= 1e-5 * reference.abs().max()
            start += t * h * w
    with torch.no_grad():
        assert torch.equal(kept.tokens, ours(pixels, GRIDS))
        assert torch.equal(kept.merged[ours.depth - 1], kept.tokens)


def test_a_map_puts_each_patch_where_its_pixels_are(towers):
    """A tower that passes the pixels' row and column through shows them in reading order."""
    _, ours = towers
    t, h, w, m = 2, 6, 4, ours.merge
    places = torch.stack(torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij"), -1)
    blocks = places.view(t, h // m, m, w // m, m, 3).transpose(2, 3).reshape(-1, 3)
    assert torch.equal(to_map(blocks, (t, h, w), m), places)


def test_layers_above_what_is_asked_for_do_not_run(towers):
    _, ours = towers
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(ours.layers)
    ]
    pixels = torch.randn(24, ours.patch_embed.in_features)
    ours.forward_intermediates(pixels, [(1, 4, 6)], indices=[0], stop_early=True, intermediates_only=True)
    assert ran == [0]
    for hook in hooks:
        hook.remove()


def test_attention_is_what_the_layer_does(towers):
    """Weights times values, projected, is the attention's own output; other windows have weight 0."""
    _, ours = towers
    grids = [(1, 12, 10), (2, 4, 6)]
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), ours.patch_embed.in_features)
    with torch.no_grad():
        for layer in range(ours.depth):
            found = ours.attention(pixels, grids, layer)
            attn, seen = ours.layers[layer].attn, {}
            hook = attn.register_forward_hook(lambda _, args, out, seen=seen: seen.update(x=args[0], out=out))
            ours.features(pixels, grids, [layer])
            hook.remove()
            begun = ours._begin(pixels, grids)
            values = begun.plan.restore_patches(attn.v_proj(seen["x"]), ours.merge)
            expected = begun.plan.restore_patches(seen["out"], ours.merge)
            start = 0
            for weights, (t, h, w) in zip(found, grids, strict=True):
                assert weights.shape == (t, attn.q_proj.out_features // attn.head_dim, h * w, h * w)
                torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
                part = slice(start, start + t * h * w)
                v = to_map(values[part], (t, h, w), ours.merge).view(t, h * w, -1, attn.head_dim)
                mixed = torch.einsum("thij,tjhd->tihd", weights, v).flatten(2)
                wanted = to_map(expected[part], (t, h, w), ours.merge).view(t, h * w, -1)
                torch.testing.assert_close(attn.output_proj(mixed), wanted, rtol=1e-4, atol=1e-5)
                start += t * h * w


def test_the_cls_token_stays_apart():
    encoder = classic_vit(img_size=8, patch_size=4, depth=2, num_classes=3).eval()
    pixels, grids = torch.randn(8, 48), [(1, 2, 2)] * 2
    with torch.no_grad():
        kept = encoder.features(pixels, grids, [0, 1])
        assert kept.patches[1].shape == (8, 128) and kept.cls[1].shape == (2, 128)
        assert encoder(pixels, grids).shape == (2, 3)
        torch.testing.assert_close(encoder.forward_head(kept, pre_logits=True), kept.cls[1])
        assert encoder.attention(pixels, grids, 1)[0].shape == (1, 8, 5, 5)
        encoder.reset_classifier(0, "mean")
        assert encoder(pixels, grids).shape == (8, 128)


def test_timms_names_and_their_errors():
    encoder = vit(embed_dim=32, depth=3, num_heads=4, patch_size=2)
    assert (encoder.num_features, encoder.embed_dim, encoder.depth) == (32, 32, 3)
    pixels = torch.randn(12, 12)
    tokens, found = encoder.forward_intermediates(pixels, [(1, 3, 4)], indices=2)
    assert tokens.shape == (12, 32) and [x.shape for x in found] == [(1, 32, 3, 4)] * 2
    normed = encoder.forward_intermediates(pixels, [(1, 3, 4)], indices=[-1], norm=True, output_fmt="NLC")
    torch.testing.assert_close(normed[1][0][0], normed[0])
    groups = encoder.group_matcher()
    assert groups["stem"] and groups["blocks"]
    with pytest.raises(ValueError, match="no cls token"):
        encoder.reset_classifier(3, "cls")
    with pytest.raises(ValueError, match=r"layers \[7\]: the encoder has the layers 0 to 2"):
        encoder.forward_intermediates(pixels, [(1, 3, 4)], indices=[7])
    with pytest.raises(ValueError, match="intermediates_only"):
        encoder.forward_intermediates(pixels, [(1, 3, 4)], stop_early=True)
    with pytest.raises(ValueError, match="NLC"):
        encoder.forward_intermediates(pixels, [(1, 3, 4)], output_fmt="NHWC")
    assert layer_indexes([-1, 0], 3) == [2, 0]
