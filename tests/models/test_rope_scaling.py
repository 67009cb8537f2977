"""Stretched contexts: the frequencies of transformers' rules, bit for bit, and its logits in every family."""

import pytest
import tiny
import torch
from cases import DELTA_NETS, Case, Exactly, as_wide_as, exact_like, of_scale, ours_like, widened
from transformers import Qwen2_5_VLTextConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.models.rope_config import read_rope, rope_scaling
from torchtune_qwenvl.modules.rope_scaling import RULES, scaled_frequencies

ORIGINAL = "original_max_position_embeddings"
WIDTH, LENGTH = 16, 1024
SHORT = [1.0, 1.0, 1.1, 1.2, 1.5, 1.7, 2.0, 2.5]
FAR = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64}
VARIANTS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "llama3 from 64": {
        **{
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            ORIGINAL: 64,
        }
    },
    "longrope": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": FAR, ORIGINAL: 64},
    "longrope by factor": {
        **{"rope_type": "longrope", "short_factor": SHORT, "long_factor": FAR, "factor": 8.0, ORIGINAL: 64}
    },
    "longrope, attention": {
        **{"rope_type": "longrope", "short_factor": SHORT, "long_factor": FAR, ORIGINAL: 64},
        **{"attention_factor": 1.3},
    },
    "yarn": YARN,
    "yarn by lengths": {**YARN, "factor": None},
    "yarn from max_position_embeddings": {"rope_type": "yarn", "factor": 4.0},
    "yarn, attention": {**YARN, "attention_factor": 0.8},
    "yarn, mscale": {**YARN, "mscale": 1.5},
    "yarn, both mscales": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.9},
    "yarn, mscale 0": {**YARN, "mscale": 0.0, "mscale_all_dim": 1.9},
    "yarn, not truncated": {**YARN, "truncate": False},
    "yarn, truncate null": {**YARN, "truncate": None},
    "yarn, betas": {**YARN, "beta_fast": 12, "beta_slow": 2.5},
    "yarn, beta 0": {**YARN, "beta_fast": 0},
    "yarn, one index": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
    "yarn, factor 1": {**YARN, "factor": 1.0},
}
ROPE = {"rope_theta": 1e4, "mrope_section": [2, 3, 3]}


@pytest.mark.parametrize("rope", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("length", [None, 65, 5000])
def test_frequencies_are_transformers(rope, length):
    text = {"hidden_size": 4 * WIDTH, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    theirs = Qwen2_5_VLTextConfig(**text, rope_parameters={**ROPE, **rope})
    expected, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](
        theirs, seq_len=None if length is None else torch.tensor(length)
    )
    text["rope_parameters"] = read_rope({**text, "rope_scaling": {**ROPE, **rope}}, None)
    ours = scaled_frequencies(WIDTH, 1e4, rope_scaling(text))
    found = ours.frequencies
    if length is not None and ours.by_length is not None:
        found = ours.by_length(torch.tensor(length))
    assert torch.equal(found, expected) and ours.scale == scale


def test_every_rule_of_transformers_is_known_or_refused_by_name():
    assert {rope["rope_type"] for rope in VARIANTS.values()} == set(RULES)
    for kind in ROPE_INIT_FUNCTIONS.keys() - set(RULES):
        with pytest.raises(
            ValueError, match=f"rotary type '{kind}' is not supported, expected one of .*'yarn'"
        ):
            read_rope({"rope_parameters": {**ROPE, "rope_type": kind}}, None)


# One of each rule, each with keys that change the logits.
STRETCHED = {
    "linear": VARIANTS["linear"],
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": VARIANTS["llama3 from 64"],
    "longrope": {**VARIANTS["longrope"], ORIGINAL: 16},
    "yarn": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.9, "truncate": False},
    "yarn, attention": VARIANTS["yarn, attention"],
}
CASES = [("qwen2_5_vl", name) for name in STRETCHED] + [
    (family, name) for family in tiny.FAMILIES for name in ("dynamic", "yarn") if family != "qwen2_5_vl"
]


@pytest.mark.parametrize(("family", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_logits_are_transformers(family, name):
    rope = {**tiny.FAMILIES[family].text["rope_parameters"], **STRETCHED[name]}
    context = 16 if name == "dynamic" else 4096  # of which dynamic needs more
    text = {"rope_parameters": rope, "max_position_embeddings": context}
    stretched = tiny.tiny_hf_model(seed=4, family=family, text=text)
    case = Case(stretched, [3, (1, 10, 14), 9])
    batch = collate(case.samples, padding_idx=0)
    batch.pop("labels")
    with Exactly():
        expected = exact_like(stretched)(**widened(case.reference_inputs())).logits
    ours, bound = ours_like(stretched), 5e-6
    if family in DELTA_NETS:
        ours, bound = ours.double(), 1e-11
    with as_wide_as(ours, batch) as inputs:
        assert of_scale(ours(**inputs), expected) <= bound
    plain = tiny.tiny_hf_model(seed=4, family=family)
    assert of_scale(ours_like(plain)(**batch), expected) > 1e-3


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({**YARN, "beta": 32}, "beta = 32 in rope_scaling .* is not known for the rotary type 'yarn'"),
        ({"factor": 4.0}, "factor = 4.0 .* is not known for the rotary type 'default'"),
        ({"rope_type": "linear", "factor": 2.0, "mscale": 1.0}, "mscale = 1.0 .* rotary type 'linear'"),
        ({"rope_type": "dynamic"}, "expected factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "expected low_freq_factor"),
        ({**VARIANTS["longrope"], "long_factor": [1.0]}, "long_factor has 1 numbers, expected 8"),
        ({**VARIANTS["longrope"], "long_factor": 2.0}, "long_factor: expected a list of numbers"),
        ({**YARN, "factor": "4"}, "factor = '4': expected a number above 0"),
        ({**YARN, "factor": float("nan")}, "factor = nan"),
        ({**YARN, ORIGINAL: 0}, f"{ORIGINAL} = 0"),
        ({"rope_type": 3}, "rotary type 3"),
        ({"rope_type": ["yarn"]}, r"rotary type \['yarn'\]"),
        ({"mrope_section": 5}, "mrope_section 5"),
    ],
)
def test_what_nobody_reads_is_refused(rope, message):
    raw = tiny.tiny_hf_config().to_dict()
    raw["text_config"]["rope_parameters"] = {"rope_theta": 1e6, "mrope_section": [2, 3, 3], **rope}
    with pytest.raises(ValueError, match=message):
        get_family(raw).slots.normalise(raw)


def test_two_parts_must_agree():
    raw = tiny.tiny_hf_config().to_dict()
    raw["text_config"]["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    get_family(raw).slots.normalise(raw)
    raw["text_config"]["rope_scaling"] = YARN
    with pytest.raises(ValueError, match="contradict each other, in rope_type first"):
        get_family(raw).slots.normalise(raw)
