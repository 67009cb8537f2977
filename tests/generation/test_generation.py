"""Generation: the same tokens as transformers, with and without cache, alone and in a batch."""

import pytest
import tiny
import torch
from cases import Case, Video, ours_like

from torchtune_qwenvl.generation import Sampling, choose, generate, stream

ROWS = [[7, (1, 4, 6), 2], [12], [1, (1, 10, 14), 2, (1, 2, 2), 3], [2, (1, 18, 34), 4]]
NEW = 20
PLAIN = {"pad_id": 0, "stop_tokens": (), "max_new_tokens": NEW}


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def hf(request):
    return tiny.tiny_hf_model(seed=5, family=request.param)


@pytest.fixture(scope="module")
def ours(hf):
    return ours_like(hf)


@pytest.fixture(scope="module")
def samples(hf):
    return Case(hf, *ROWS).samples


@pytest.fixture(scope="module")
def expected(hf):
    """Every row alone through transformers' generate."""
    rows = []
    for i in range(len(ROWS)):
        batch = Case(hf, *ROWS).only(i).reference_inputs()
        batch.pop("labels")
        out = hf.generate(**batch, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        rows.append(out[0, batch["input_ids"].shape[1] :].tolist())
        assert len(rows[-1]) == NEW
    return rows


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_greedy_equals_transformers_in_a_batch_and_alone(ours, samples, expected, use_cache):
    assert generate(ours, samples, use_cache=use_cache, **PLAIN) == expected
    for sample, row in zip(samples, expected, strict=True):
        assert generate(ours, [sample], use_cache=use_cache, **PLAIN) == [row]
    assert len({tuple(row) for row in expected}) == len(ROWS)


SEED = 27  # with which no model writes a placeholder
VIDEO_ROWS = [
    [7, Video(3, 4, 6, seconds=2.0), 2],
    [12],
    [1, (1, 10, 14), 2, Video(2, 2, 2), 3, (1, 2, 4), 2],
    [2, Video(5, 8, 4, seconds=0.4), 1, Video(1, 4, 4), 4],
]


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_greedy_with_videos_is_transformers_argmax_at_every_step(hf, ours, use_cache):
    """Teacher-forced with our positions: after a video, transformers' own are not the published ones."""
    whole = Case(hf, *VIDEO_ROWS, seed=SEED)
    together = generate(ours, whole.samples, use_cache=use_cache, **PLAIN)
    assert len({tuple(row) for row in together}) == len(VIDEO_ROWS)
    # transformers would look for pixels of a placeholder that the model itself has written.
    assert not {hf.config.image_token_id, hf.config.video_token_id} & {t for row in together for t in row}
    for i, row in enumerate(together):
        case = whole.only(i)
        (sample,), n = case.samples, len(case.samples[0]["tokens"])
        assert generate(ours, [sample], use_cache=use_cache, **PLAIN) == [row]
        following = sample["input_pos"].max() + 1 + torch.arange(NEW)
        sample["input_pos"] = torch.cat([sample["input_pos"], following[:, None].expand(-1, 3)])
        sample["tokens"], sample["mask"] = sample["tokens"] + row, sample["mask"] + [True] * NEW
        inputs = case.reference_inputs() | {"position_ids": sample["input_pos"].T[:, None]}
        inputs.pop("labels")
        with torch.no_grad():
            logits = hf(**inputs).logits[0]
        assert logits[n - 1 : -1].argmax(-1).tolist() == row


def test_padding_changes_nothing(ours, samples, expected):
    """Any token can be the pad token, except an image's placeholder: it changes no result."""
    assert generate(ours, samples, **{**PLAIN, "pad_id": 77}) == expected


def test_rows_end_before_their_stop_token_and_the_others_go_on(ours, samples, expected):
    stop = expected[0][6]
    wanted = [row[: row.index(stop)] if stop in row else row for row in expected]
    settings = {**PLAIN, "stop_tokens": [stop]}
    assert generate(ours, samples, **settings) == wanted
    steps = list(stream(ours, samples, **settings))
    assert [[s[i] for s in steps if s[i] is not None] for i in range(len(ROWS))] == wanted
    first = expected[1][0]
    assert generate(ours, samples[1:2], **{**PLAIN, "stop_tokens": {first}}) == [[]]


def test_a_seed_gives_a_row_the_same_tokens_in_any_batch(ours, samples):
    rule = Sampling(temperature=1.5, top_p=0.95, top_k=40, seed=11)
    together = generate(ours, samples, sampling=rule, **PLAIN)
    assert together == generate(ours, samples, sampling=rule, use_cache=False, **PLAIN)
    for i, sample in enumerate(samples):
        alone = Sampling(rule.temperature, rule.top_k, rule.top_p, rule.seed + i)
        assert generate(ours, [sample], sampling=alone, **PLAIN) == [together[i]]
    assert together != generate(ours, samples, sampling=Sampling(1.5, 40, 0.95, seed=12), **PLAIN)


def draw(logits: torch.Tensor, rule: Sampling, times: int = 4000) -> torch.Tensor:
    """How often each token came, [v]."""
    generator = [torch.Generator().manual_seed(0)]
    picked = torch.stack([choose(logits[None], rule, generator)[0] for _ in range(times)])
    return torch.bincount(picked, minlength=len(logits)) / times


def test_samples_follow_the_tempered_probabilities():
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 0.5])
    assert (draw(logits, Sampling(0.7)) - (logits / 0.7).softmax(-1)).abs().max() < 0.03


def test_top_k_and_top_p_keep_what_transformers_keeps():
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 0.5])
    for rule in (Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.8), Sampling(1.0, top_k=4, top_p=0.9)):
        kept = logits[None]
        if rule.top_k:
            kept = TopKLogitsWarper(rule.top_k)(None, kept)
        kept = TopPLogitsWarper(rule.top_p)(None, kept)
        assert (draw(logits, rule) - kept[0].softmax(-1)).abs().max() < 0.03
        assert ((draw(logits, rule) > 0) == kept[0].isfinite()).all()


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}])
def test_impossible_sampling_is_refused(bad):
    with pytest.raises(ValueError, match="top_p <= 1, got"):
        Sampling(**bad)


def test_a_full_cache_says_so(ours):
    cache = ours.make_cache([3], capacity=3)
    ours(torch.tensor([[1, 2, 3]]), cache=cache)
    with pytest.raises(ValueError, match="holds 3 tokens per row, 4 are needed"):
        ours(torch.tensor([[4]]), input_pos=torch.full((1, 1, 3), 3), cache=cache)
    with pytest.raises(ValueError, match="one token at a time, got 2"):
        ours(torch.tensor([[4, 5]]), cache=cache)
