"""The plain ViTs: published counts, the classic network written out, dropout, and their folders."""

import pytest
import torch
from torch import nn

from torchtune_qwenvl import load_vision_encoder
from torchtune_qwenvl.checkpoints.vision_encoder import save_vision_encoder
from torchtune_qwenvl.models.vit import classic_vit, vit, vit_base, vit_from_config, vit_large, vit_small


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "build, parameters",
    [
        (vit_small, 38_131_200),
        (vit_base, 302_914_560),
        (vit_large, 630_434_560),
        (lambda: vit(embed_dim=768, depth=12, num_heads=12), 85_508_352),
        (lambda: classic_vit(num_classes=10), 2_383_338),
    ],
    ids=["small", "base", "large", "768 wide", "classic"],
)
def test_parameters(build, parameters):
    with torch.device("meta"):
        assert count(build()) == parameters


class ClassicAttention(nn.Module):
    """As the tutorial that the classic ViT comes from describes it: heads of 64, whatever the width."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, width)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class ClassicViT(nn.Module):
    """The whole network, written out: patches as (row, column, channel), a norm before and after their
    projection."""

    def __init__(self, side=8, patch=2, classes=5, width=24, depth=3, heads=2, head_dim=64, ratio=4) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        values = 3 * patch * patch
        self.before, self.project, self.after = (
            nn.LayerNorm(values),
            nn.Linear(values, width),
            nn.LayerNorm(width),
        )
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width))
        self.attentions = nn.ModuleList(ClassicAttention(width, heads, head_dim) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, ratio * width),
                nn.GELU(),
                nn.Linear(ratio * width, width),
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images, pool):
        b, _, side, _ = images.shape
        p, n = self.patch, side // self.patch
        patches = images.reshape(b, 3, n, p, n, p).permute(0, 2, 4, 3, 5, 1).reshape(b, n * n, -1)
        x = self.after(self.project(self.before(patches)))
        x = torch.cat([self.cls.expand(b, -1, -1), x], 1) + self.positions
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            x = x + attention(x)
            x = x + mlp(x)
        return self.head(x[:, 0] if pool == "cls" else x[:, 1:].mean(1))


def ours_of(reference: ClassicViT, **arguments) -> nn.Module:
    """Our classic ViT with the reference's weights; the values of a patch come channel by channel."""
    model = classic_vit(
        img_size=8, patch_size=2, embed_dim=24, depth=3, num_heads=2, num_classes=5, **arguments
    )
    by_channel = torch.arange(12).view(2, 2, 3).permute(2, 0, 1).flatten()
    state = {
        "patch_embed.pixel_norm.weight": reference.before.weight[by_channel],
        "patch_embed.pixel_norm.bias": reference.before.bias[by_channel],
        "patch_embed.weight": reference.project.weight[:, by_channel],
        "patch_embed.bias": reference.project.bias,
        "cls_token.weight": reference.cls[0, 0],
        "cls_token.position": reference.positions[0, 0],
        "position_embed.weight": reference.positions[0, 1:],
    }
    state |= {f"patch_norm.{name}": value for name, value in reference.after.named_parameters()}
    state |= {f"head.{name}": value for name, value in reference.head.named_parameters()}
    for i, (attention, mlp) in enumerate(zip(reference.attentions, reference.mlps, strict=True)):
        q, k, v = attention.to_qkv.weight.chunk(3)
        state |= {f"layers.{i}.attn.{n}_proj.weight": w for n, w in (("q", q), ("k", k), ("v", v))}
        parts = {"sa_norm": attention.norm, "attn.output_proj": attention.to_out, "mlp_norm": mlp[0]}
        parts |= {"mlp.w1": mlp[1], "mlp.w2": mlp[3]}
        for name, part in parts.items():
            state |= {f"layers.{i}.{name}.{leaf}": value for leaf, value in part.named_parameters()}
    model.load_state_dict(state)
    return model


def patches_of(images):
    b, c, side, _ = images.shape
    return images.reshape(b, c, side // 2, 2, side // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, c * 4)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_classic_network_written_out(pool):
    reference = ClassicViT()
    with torch.no_grad():
        for parameter in reference.parameters():  # norms of 1 and biases of 0 would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = ours_of(reference, global_pool=pool)
    images = torch.randn(3, 3, 8, 8)
    expected = reference(images, pool)
    logits = model(patches_of(images), [(1, 4, 4)] * 3)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_dropout_acts_in_training_only():
    encoder, plain = (vit(embed_dim=16, depth=2, num_heads=2, patch_size=2, dropout=p) for p in (0.5, 0.0))
    plain.load_state_dict(encoder.state_dict())
    pixels = torch.randn(4, 12)
    assert not torch.equal(encoder(pixels, [(1, 2, 2)]), encoder(pixels, [(1, 2, 2)]))
    torch.testing.assert_close(encoder.eval()(pixels, [(1, 2, 2)]), plain(pixels, [(1, 2, 2)]))


@pytest.mark.parametrize("build", [classic_vit, lambda **a: vit(embed_dim=16, depth=2, num_heads=2, **a)])
def test_a_folder_of_a_plain_vit_comes_back(tmp_path, build):
    encoder = build(num_classes=4, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], dropout=0.1)
    again = load_vision_encoder(save_vision_encoder(encoder, tmp_path / "vit"))
    assert {**again.config, "global_pool": None} == encoder.config and again.head.out_features == 4
    assert again.patch_embed.scale == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    for name, weight in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    with pytest.raises(ValueError, match="model_type 'nothing'"):
        vit_from_config({"model_type": "nothing"})
    with pytest.raises(ValueError, match="no multiple"):
        classic_vit(img_size=30)
