"""What every family's folder must have: sizes, config files, a vision encoder that works alone."""

import json

import pytest
import tiny
import torch
from cases import (
    DELTA_NETS,
    Case,
    Exactly,
    as_wide_as,
    constants,
    exact_like,
    ours_like,
    relative,
    renamed,
    widened,
)

from torchtune_qwenvl import load_model, load_vision_encoder, models
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.generation import generate
from torchtune_qwenvl.models import (
    get_family,
    glm4v,
    glm4v_moe,
    qwen2_vl,
    qwen3_5,
    qwen3_5_moe,
    qwen3_vl,
    qwen3_vl_moe,
)
from torchtune_qwenvl.modules.norm import CentredRMSNorm, LayerNorm, RMSNorm
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.step.checkpointing import checkpoint_activations

COUNTS = {
    (qwen2_vl, "qwen2_vl_2b"): 2_208_985_600,
    (qwen2_vl, "qwen2_vl_7b"): 8_291_375_616,
    (qwen2_vl, "qwen2_vl_72b"): 73_405_560_320,
    (qwen3_vl, "qwen3_vl_2b"): 2_127_532_032,
    (qwen3_vl, "qwen3_vl_4b"): 4_437_815_808,
    (qwen3_vl, "qwen3_vl_8b"): 8_767_123_696,
    (qwen3_vl, "qwen3_vl_32b"): 33_357_390_064,
    (qwen3_vl_moe, "qwen3_vl_30b_a3b"): 31_070_754_032,
    (qwen3_vl_moe, "qwen3_vl_235b_a22b"): 235_670_022_896,
    (qwen3_5, "qwen3_5_0_8b"): 852_985_920,
    (qwen3_5, "qwen3_5_2b"): 2_213_241_664,
    (qwen3_5, "qwen3_5_4b"): 4_539_265_536,
    (qwen3_5, "qwen3_5_9b"): 9_409_813_744,
    (qwen3_5, "qwen3_5_27b"): 27_356_728_560,
    (qwen3_5_moe, "qwen3_5_35b_a3b"): 35_107_181_936,
    (qwen3_5_moe, "qwen3_5_122b_a10b"): 122_562_817_776,
    (qwen3_5_moe, "qwen3_5_397b_a17b"): 396_802_360_816,
    (glm4v, "glm4_1v_9b"): 10_292_777_472,
    (glm4v, "glm4_6v_flash"): 10_292_777_472,
    (glm4v_moe, "glm4_5v"): 107_710_933_120,
    (glm4v_moe, "glm4_6v"): 107_710_933_120,
}
# What no parameter shows: context and rotary base of the published files.
ROTARY = {
    (qwen3_5, "qwen3_5_27b"): (262144, 1e7),
    (qwen3_5_moe, "qwen3_5_35b_a3b"): (262144, 1e7),
    (qwen2_vl, "qwen2_vl_72b"): (32768, 1e6),
    (qwen3_vl, "qwen3_vl_32b"): (262144, 5e6),
    (glm4v, "glm4_1v_9b"): (65536, 1e4),
    (glm4v, "glm4_6v_flash"): (131072, 5e5),
    (glm4v_moe, "glm4_5v"): (65536, 1e4),
    (glm4v_moe, "glm4_6v"): (131072, 5e5),
}


@pytest.mark.parametrize(("builder", "count"), COUNTS.items(), ids=[name for _, name in COUNTS])
def test_published_parameter_counts(builder, count):
    family, name = builder
    with torch.device("meta"):
        model = getattr(family, name)()
        reference = tiny.FAMILIES[model.config["model_type"]]
        theirs = reference.model(reference.config(**model.config))
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in (*theirs.parameters(), *constants(theirs).values())) == count
    assert not list(model.buffers())


@pytest.mark.parametrize(("builder", "published"), ROTARY.items(), ids=[name for _, name in ROTARY])
def test_published_contexts_and_rotary_bases(builder, published):
    family, name = builder
    with torch.device("meta"):
        text = getattr(family, name)().config["text_config"]
    assert (text["max_position_embeddings"], text["rope_parameters"]["rope_theta"]) == published


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_published_and_5_x_config_json_read_alike(family):
    config = tiny.tiny_hf_config(family=family, tie=True)
    published = (tiny.flat_config if tiny.FAMILIES[family].flat else tiny.nested_config)(config)
    with torch.device("meta"):
        read = [get_family(raw).from_config(raw).config for raw in (config.to_dict(), published)]
        again = get_family(read[0]).from_config(read[0]).config
    for one in (*read, again):  # unused, and only the published form has it
        one["text_config"]["rope_parameters"].pop("mrope_interleaved", None)
    assert read[0] == read[1] == again


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_the_published_file_builds(family):
    published = tiny.shared_data() / "published" / family / "config.json"
    raw = json.loads(published.read_text())
    vision = raw["vision_config"]  # shared with fewer layers than these name
    for name in ("deepstack_visual_indexes", "fullatt_block_indexes"):
        if name in vision:
            vision[name] = [0, 1]
    with torch.device("meta"):
        model = get_family(raw).from_config(raw)
    assert model.config["dtype"] == "bfloat16" and model.config["vision_config"]["in_channels"] == 3
    assert models.get_family(raw) is models.FAMILIES[family]


@pytest.mark.parametrize(
    ("family", "text", "vision", "message"),
    [
        ("qwen2_vl", {}, {"hidden_act": "gelu"}, "hidden_act quick_gelu, got 'gelu'"),
        ("qwen2_vl", {}, {"hidden_size": 32}, "visual tokens of width 32"),
        ("qwen2_vl", {}, {"num_heads": 5}, "64 is no multiple of 20"),
        ("qwen3_vl", {"attention_bias": True}, {}, "attention_bias is true"),
        ("qwen3_vl", {"head_dim": 16}, {}, "half a head's rotated width, 8$"),
        ("qwen3_vl", {"head_dim": None}, {}, "'head_dim'"),
        ("qwen3_vl", {}, {"deepstack_visual_indexes": [1, 9]}, r"\[9\] beyond the 3 vision layers"),
        ("qwen3_vl", {"num_hidden_layers": 1}, {}, "2 deepstack_visual_indexes for 1 decoder layers"),
        ("qwen3_vl", {}, {"num_position_embeddings": 40}, "40: expected a square number"),
        (
            "qwen3_vl_moe",
            {"num_experts_per_tok": 7},
            {},
            "num_experts_per_tok 7: expected 1 to num_experts, 6",
        ),
        ("glm4v_moe", {"norm_topk_prob": False}, {}, "norm_topk_prob is False"),
        ("glm4v_moe", {"n_group": 4}, {}, "n_routed_experts over n_group: 6 is no multiple of 4"),
        ("glm4v_moe", {"topk_group": 4}, {}, "topk_group 4: expected 1 to n_group, 3"),
        ("glm4v_moe", {"num_experts_per_tok": 5}, {}, "num_experts_per_tok 5.*of topk_group groups, 4"),
        ("qwen3_vl_moe", {"norm_topk_prob": False}, {}, "norm_topk_prob is false"),
        (
            "qwen3_5",
            {"layer_types": ["linear_attention", "mamba", "full_attention", "linear_attention"]},
            {},
            "layer_types has mamba: expected linear_attention or full_attention",
        ),
        ("qwen3_5", {"layer_types": ["full_attention"]}, {}, "1 layer_types for 4 layers"),
        ("qwen3_5", {"attn_output_gate": False}, {}, "attn_output_gate is False, which is not supported"),
        ("qwen3_5", {"attention_bias": True}, {}, "attention_bias is True"),
        ("qwen3_5", {"output_gate_type": "sigmoid"}, {}, "output_gate_type is 'sigmoid'"),
        ("qwen3_5", {"linear_num_key_heads": 3}, {}, "linear_num_key_heads: 4 is no multiple of 3"),
        ("qwen3_5", {"linear_conv_kernel_dim": None}, {}, "'linear_conv_kernel_dim'"),
        ("qwen3_5", {"head_dim": 16}, {}, "half a head's rotated width, 4$"),
        ("qwen3_5", {}, {"deepstack_visual_indexes": [1]}, r"deepstack_visual_indexes \[1\]: expected none"),
        (
            "qwen3_5_moe",
            {"num_experts_per_tok": 9},
            {},
            "num_experts_per_tok 9: expected 1 to num_experts, 6",
        ),
        ("qwen3_5_moe", {"mlp_only_layers": [0]}, {}, r"mlp_only_layers is \[0\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(family, text, vision, message):
    raw = tiny.tiny_hf_config(family=family).to_dict()
    raw["text_config"] |= text
    raw["vision_config"] |= vision
    with pytest.raises(ValueError, match=message):
        get_family(raw).from_config(raw)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_vision_half_alone_equals_that_of_the_model(tmp_path, family):
    source = tiny.save_tiny_folder(tmp_path / "source", family=family)
    encoder, model = load_vision_encoder(source), load_model(source)
    assert not any(p.is_meta for p in encoder.parameters())
    pixels = torch.randint(0, 256, (24, encoder.patch_embed.still_width), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(encoder(pixels, [[1, 4, 6]]), model.vision_encoder(pixels, [[1, 4, 6]]))


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_load_balance_loss_equals_the_reference(family):
    """Loss and every gradient, padding left out; delta nets in fp64."""
    hf = tiny.tiny_hf_model(seed=6, family=family)
    ours = ours_like(hf, router_aux_loss_coef=0.3)
    hf.config.text_config.router_aux_loss_coef = 0.3
    exact = exact_like(hf)
    ours, bound = (ours.double(), 1e-6) if family in DELTA_NETS else (ours, 1e-5)
    case = Case(hf, [2, (1, 6, 12), 14], [25], [1, (1, 2, 4), 1, (1, 8, 34), 6])
    with Exactly():
        expected = exact(**widened(case.reference_inputs()), output_router_logits=True)
        expected.loss.backward()
    with as_wide_as(ours, collate(case.samples, padding_idx=0)) as batch:
        losses = ours(**batch, return_router_loss=True)
        (losses.loss_sum / losses.labelled).backward()
    mean = (losses.loss_sum + 0.3 * losses.router_loss_sum) / losses.labelled
    assert abs(mean - expected.loss) <= 5e-6
    assert 0.3 * expected.aux_loss > 0.1  # it counts
    gradients = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    theirs = dict(renamed(hf, gradients))
    assert theirs.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert relative(parameter.grad, theirs[name]) <= bound, name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_norm_keeps_its_input_and_nothing_else(family):
    """Ours: torchtune's RMSNorm keeps fp32 copies."""
    hf = tiny.tiny_hf_model(family=family)
    norms = {type(module) for module in ours_like(hf).modules() if "Norm" in type(module).__name__}
    assert norms and norms <= {RMSNorm, CentredRMSNorm, LayerNorm}


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "glm4v_moe", "qwen3_5_moe"])
def test_the_load_balance_loss_trains_but_is_not_in_the_loss(family):
    """Training, validation and generation by turns, with batches of different sizes."""
    hf = tiny.tiny_hf_model(seed=6, family=family)
    plain, *watched = (ours_like(hf, router_aux_loss_coef=coef).train() for coef in (0.0, 0.3, 0.3))
    checkpoint_activations(watched[1], {"decoder": True})
    large, small = (collate(Case(hf, *rows).samples) for rows in ([[2, (1, 4, 6), 14], [25]], [[9]]))
    prompt = {"tokens": [1, 2], "mask": [True] * 2, "input_pos": torch.zeros(2, 3).long()}
    for batch in (large, small, large):
        expected = losses_and_gradients(plain, batch)
        without = {name: p.grad for name, p in plain.named_parameters()}
        assert expected.router_loss_sum is None
        for model in watched:
            losses = losses_and_gradients(model, batch)
            assert torch.equal(losses.loss_sum, expected.loss_sum)
            assert losses.router_loss_sum > 0 and not losses.router_loss_sum.requires_grad
        for (name, one), other in zip(watched[0].named_parameters(), watched[1].parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, msg=name)
            if "router.weight" in name:
                assert relative(one.grad, without[name]) > 1e-4, name
        with torch.no_grad():  # of another size than the batch before
            assert torch.equal(watched[0].eval()(**small)[0], plain.eval()(**small)[0])
        assert torch.equal(watched[0](large["tokens"][:1, :3]), plain(large["tokens"][:1, :3]))
        generate(watched[0], [prompt], pad_id=0, stop_tokens=(), max_new_tokens=2)
        for model in (watched[0], plain):
            model.train()


def losses_and_gradients(model, batch):
    model.zero_grad(set_to_none=True)
    losses = model(**batch, return_router_loss=True)
    losses.loss_sum.backward()
    return losses


def test_a_coefficient_without_routers_is_refused():
    hf = tiny.tiny_hf_model()
    model = ours_like(hf)
    arguments = {
        name: getattr(model, name) for name in ("vision_encoder", "decoder", "training_plan", "config")
    }
    with pytest.raises(ValueError, match=r"router_aux_loss_coef is 0\.1, but the decoder has no routers"):
        VisionLanguageModel(**arguments, image_token_id=1, video_token_id=2, router_aux_loss_coef=0.1)
