"""Choosing tokens: transformers' logits processors on random logits, its greedy answers with a penalty."""

import json

import pytest
import tiny
import torch
from cases import Case, ours_like
from transformers import GenerationConfig
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from torchtune_qwenvl.generation import Sampling, choose, folder_sampling, generate, processed

RULES = [
    Sampling(0.7),
    Sampling(1.0, top_k=5),
    Sampling(1.0, top_k=5000),
    Sampling(1.0, top_p=0.8),
    Sampling(1.3, top_p=0.01),
    Sampling(1.0, min_p=0.05),
    Sampling(1.0, min_p=1.0),
    Sampling(0.7, top_k=20, top_p=0.8, repetition_penalty=1.05),
    Sampling(1e-6, repetition_penalty=1.05),
    Sampling(1.5, top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.3),
    Sampling(0.9, repetition_penalty=0.8),
    Sampling(0.0, repetition_penalty=1.1),
]


def theirs(rule: Sampling, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """transformers' processors in the order of `_get_logits_processor`."""
    steps = []
    if rule.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(rule.repetition_penalty))
    if rule.temperature:
        steps += [TemperatureLogitsWarper(rule.temperature)] if rule.temperature != 1 else []
        steps += [TopKLogitsWarper(rule.top_k)] if rule.top_k else []
        steps += [TopPLogitsWarper(rule.top_p)] if rule.top_p < 1 else []
        steps += [MinPLogitsWarper(rule.min_p)] if rule.min_p else []
    for step in steps:
        logits = step(ids, logits)
    return logits


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_scores_are_those_of_transformers_processors(rule):
    generator = torch.Generator().manual_seed(1)
    for spread in (0.1, 1.0, 8.0):
        logits = torch.randn(6, 700, generator=generator) * spread
        logits[0, :300] = logits[0, 300]  # ties
        ids = torch.randint(0, 700, (6, 40), generator=generator)
        seen = torch.zeros(6, 700, dtype=torch.bool).scatter_(1, ids, True)
        assert torch.equal(processed(logits, rule, seen), theirs(rule, ids, logits))


def test_no_token_is_taken_that_was_removed():
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0, 0.5]])
    draws = [torch.Generator().manual_seed(0)]
    kept = processed(logits, Sampling(1.0, min_p=0.3)).isfinite()[0]
    assert kept.tolist() == [False, True, True, False, False]
    taken = {choose(logits, Sampling(1.0, min_p=0.3), draws).item() for _ in range(200)}
    assert taken == {1, 2}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "glm4v"])
@pytest.mark.parametrize("penalty", [1.05, 1.5])
def test_greedy_with_a_penalty_is_transformers(family, penalty):
    hf = tiny.tiny_hf_model(seed=5, family=family)
    rows = ([7, (1, 4, 6), 2], [12], [1, (1, 10, 14), 2, (1, 2, 2), 3])
    case, ours = Case(hf, *rows), ours_like(hf)
    expected = []
    for i in range(len(rows)):
        batch = case.only(i).reference_inputs()
        batch.pop("labels")
        settings = {"do_sample": False, "eos_token_id": None, "repetition_penalty": penalty}
        out = hf.generate(**batch, max_new_tokens=20, **settings)
        expected.append(out[0, batch["input_ids"].shape[1] :].tolist())
    rule = {"pad_id": 0, "stop_tokens": (), "max_new_tokens": 20}
    for cache in (True, False):
        got = generate(
            ours, case.samples, sampling=Sampling(repetition_penalty=penalty), use_cache=cache, **rule
        )
        assert got == expected
    assert got != generate(ours, case.samples, **rule)


PUBLISHED = {
    "Qwen2.5-VL": (
        {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6},
        Sampling(1e-6, top_k=50, repetition_penalty=1.05),
    ),
    "Qwen3-VL": (
        {"do_sample": True, "top_p": 0.8, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0},
        Sampling(0.7, top_k=20, top_p=0.8),
    ),
    "not sampled": (
        {"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.2},
        Sampling(0, 0, 1, 0, 0, 1.2),
    ),
    "silent": ({}, Sampling()),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_folder_says_how_to_choose(tmp_path, name):
    content, expected = PUBLISHED[name]
    (tmp_path / "generation_config.json").write_text(json.dumps({**content, "eos_token_id": [1, 2]}))
    assert folder_sampling(tmp_path) == (expected, [])
    assert GenerationConfig._get_default_generation_params()["top_k"] == 50  # what a silent file means


def test_no_file_is_greedy_and_what_is_not_followed_is_named(tmp_path):
    assert folder_sampling(tmp_path) == (Sampling(), [])
    content = {"num_beams": 4, "no_repeat_ngram_size": 3, "typical_p": 1.0, "suppress_tokens": []}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert folder_sampling(tmp_path)[1] == ["num_beams = 4", "no_repeat_ngram_size = 3"]


@pytest.mark.parametrize(
    "content", [{"temperature": "0.7"}, {"do_sample": True, "top_p": 1.5}, {"top_k": -1}]
)
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{tmp_path}/generation_config.json: .*{list(content)[-1]}"):
        folder_sampling(tmp_path)


@pytest.mark.parametrize(
    "bad", [{"min_p": -0.1}, {"min_p": 2}, {"repetition_penalty": 0}, {"top_p": float("nan")}]
)
def test_impossible_values_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.*got"):
        Sampling(**bad)
