"""What trains: all settings of the three parts, and the rules between LoRA's arguments."""

import itertools

import pytest
import tiny
import torch
from cases import Case, ours_like
from torchtune.modules.peft import get_adapter_params

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.models.qwen2_5_vl import qwen2_5_vl_from_config
from torchtune_qwenvl.modules.adapters.lora import is_adapter
from torchtune_qwenvl.modules.trainable import PARTS, part_of

MODES = ("frozen", "lora", "full")
SETTINGS = [modes for modes in itertools.product(MODES, repeat=3) if set(modes) != {"frozen"}]
WITH_DORA = [(modes, dora) for modes in SETTINGS for dora in (False, True) if "lora" in modes or not dora]
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 2, "lora_alpha": 4}


def named(modes: tuple[str, ...]) -> dict[str, str]:
    return {f"{part}_trainable": mode for part, mode in zip(PARTS, modes, strict=True)}


@pytest.fixture(scope="module")
def hf():
    return tiny.tiny_hf_model(seed=6)


@pytest.fixture(scope="module")
def batch(hf):
    return collate(Case(hf, [3, (1, 10, 6), 6], [8]).samples, padding_idx=0)


def by_path(name: str, modes: dict[str, str]) -> bool:
    """Whether a parameter is to change, said independently of `part_of`."""
    if name.startswith("vision_encoder.merger."):
        mode = modes["fusion_trainable"]
    elif name.startswith("vision_encoder."):
        mode = modes["encoder_trainable"]
    else:
        mode = modes["decoder_trainable"]
    return mode == "full" or (mode == "lora" and ("lora_" in name or "magnitude" in name))


@pytest.mark.parametrize(
    ("modes", "use_dora"), WITH_DORA, ids=["-".join(modes) + "-dora" * dora for modes, dora in WITH_DORA]
)
def test_exactly_the_named_parameters_change(hf, batch, modes, use_dora):
    arguments = named(modes) | ({**LORA, "use_dora": use_dora} if "lora" in modes else {})
    model = ours_like(hf, **arguments).train()
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b.weight"):  # zero at the start, which hides lora_a's gradient
            torch.nn.init.normal_(parameter, std=0.02)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss, n = model(**batch)
    (loss / n).backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # The embeddings of tokens that did not occur keep their values, the matrix as a whole changes.
    assert changed == {name for name in before if by_path(name, named(modes))}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == changed


def test_a_frozen_encoder_builds_no_graph(hf, batch):
    vision = batch["encoder_input"]["vision"]
    for fusion in ("frozen", "full"):
        model = ours_like(hf, encoder_trainable="frozen", fusion_trainable=fusion).train()
        seen = []
        for module in (model.vision_encoder.patch_embed, *model.vision_encoder.layers):
            module.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.requires_grad))
        tokens = model.vision_encoder(**vision)
        assert len(seen) == 4 and not any(seen)
        assert tokens.requires_grad == (fusion == "full")


def test_adapters_start_as_the_base_model(hf, batch):
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    expected = ours_like(hf)(**inputs)
    for use_dora in (False, True):
        modes = named(("lora", "lora", "lora"))
        assert torch.allclose(
            ours_like(hf, **modes, **LORA, use_dora=use_dora)(**inputs), expected, atol=1e-5
        )


def test_full_parts_beside_lora_are_named_for_the_stock_recipe(hf):
    model = ours_like(hf, **named(("frozen", "full", "lora")), **LORA)
    expected = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(get_adapter_params(model)) == expected
    assert {part_of(name) for name in expected} == {"fusion", "decoder"}
    assert not [name for name in expected if part_of(name) == "decoder" and not is_adapter(name)]
    assert ours_like(hf).adapter_params() == []


def test_adapters_sit_where_they_are_asked_for(hf):
    arguments = {"lora_attn_modules": ["k_proj"], "lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.1}
    model = ours_like(hf, **named(("lora", "frozen", "lora")), **arguments)
    modules = {name.rsplit(".", 2)[0] for name, _ in model.named_parameters() if is_adapter(name)}
    towers = [("vision_encoder", 3), ("decoder", 2)]
    assert modules == {f"{tower}.layers.{i}.attn.k_proj" for tower, depth in towers for i in range(depth)}
    assert model.decoder.layers[0].attn.k_proj.dropout.p == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (named(("frozen",) * 3), "nothing to train"),
        (dict.fromkeys(named(("frozen",) * 3), False), "nothing to train"),
        ({"lora_rank": 8}, 'no part is "lora"'),
        ({"lora_attn_modules": ["q_proj"]}, 'no part is "lora"'),
        ({"use_dora": True}, 'no part is "lora"'),
        ({"decoder_trainable": "lora"}, "lora_rank"),
        ({"decoder_trainable": "lora", "lora_rank": 8, "lora_alpha": 8}, "nothing to put it on"),
        ({"decoder_trainable": "lora", "lora_attn_modules": ["q_proj"], "lora_rank": 8}, "lora_alpha"),
        ({"decoder_trainable": "lora", **LORA, "lora_attn_modules": ["qkv"]}, "q_proj.*got.*qkv"),
        ({"fusion_trainable": "lora", **LORA, "apply_lora_to_mlp": False}, "apply_lora_to_mlp=True"),
        ({"encoder_trainable": "some"}, "encoder_trainable: expected.*got 'some'"),
    ],
)
def test_contradicting_arguments_are_refused(hf, arguments, message):
    with pytest.raises(ValueError, match=message):
        qwen2_5_vl_from_config(hf.config.to_dict(), **arguments)


def test_text_only_batches_give_the_encoder_zero_gradients(hf):
    """So that every rank of a run has gradients for the same parameters."""
    text = collate(Case(hf, [9], [4]).samples, padding_idx=0)
    model = ours_like(hf).train()
    loss, _ = model(**text)
    loss.backward()
    gradients = [p.grad for p in model.vision_encoder.parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    assert model.decoder.norm.scale.grad.any()
    assert torch.equal(loss, ours_like(hf).eval()(**text)[0])
