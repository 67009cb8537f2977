"""Weights of answers from the batch to the loss: transformers' logits, packed or padded, in the mean."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from cases import Case, ours_like, relative

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.data.loader import Batch
from torchtune_qwenvl.training.step.batches import collate_for, work_of
from torchtune_qwenvl.training.watch.flops import FlopCounter

ROWS = ([3, (1, 4, 6), 5], [17], [2, (1, 8, 4), 3, (1, 4, 4), 6], [6])


@pytest.fixture(scope="module")
def hf():
    return tiny.tiny_hf_model(seed=5)


def weighted(samples: list[dict]) -> list[dict]:
    """The samples with a random weight for each token, the last one as it is."""
    generator = torch.Generator().manual_seed(1)
    *first, last = samples
    return [
        *({**s, "weights": 2 * torch.rand(len(s["tokens"]), generator=generator)} for s in first),
        last,
    ]


def test_the_mean_is_that_of_weighted_cross_entropies(hf) -> None:
    model = ours_like(hf).train()
    samples = weighted(Case(hf, *ROWS, labelled=4).samples)
    batch = collate(samples)
    labels, weights = batch.pop("labels"), batch["layout"].pop("weights")
    logits, targets = model(**batch)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    losses = F.cross_entropy(logits.double(), targets, reduction="none") * weights[:, 1:].flatten()
    expected, total = losses.sum(), weights[:, 1:][labels[:, 1:] != -100].double().sum()
    gradients = torch.autograd.grad(expected, model.decoder.output.weight)
    for padding_free in (False, True):
        loss, number = model(**collate(samples, padding_free=padding_free))
        assert abs(loss / number - expected / total) <= 5e-6 * (expected / total)
        assert number == pytest.approx(total.item(), rel=1e-12)
        assert relative(torch.autograd.grad(loss, model.decoder.output.weight)[0], gradients[0]) <= 1e-5


def test_weights_of_one_are_no_weights(hf) -> None:
    model, samples = ours_like(hf), Case(hf, *ROWS).samples
    ones = [{**sample, "weights": torch.ones(len(sample["tokens"]))} for sample in samples]
    assert "weights" not in collate(samples)["layout"]
    plain, given = model(**collate(samples)), model(**collate(ones))
    assert torch.equal(plain[0], given[0]) and plain[1] == given[1]


def test_the_recipe_counts_weights_and_the_head_counts_positions(hf) -> None:
    flops = FlopCounter(ours_like(hf))
    samples = Case(hf, *ROWS, labelled=3).samples
    halves = [{**sample, "weights": torch.full((len(sample["tokens"]),), 0.25)} for sample in samples]
    plain, counted = (
        work_of(Batch(collate_for(ours_like(hf))(one, padding_idx=511, ignore_idx=-100), 4, 1), 511, flops)
        for one in (samples, halves)
    )
    assert counted.labelled == plain.labelled / 4 and counted.flops == plain.flops


def test_weights_are_refused_where_they_would_be_lost(hf) -> None:
    model, samples = ours_like(hf), weighted(Case(hf, *ROWS).samples)
    batch = collate(samples)
    del batch["labels"]  # as torchtune's stock recipes do
    with pytest.raises(ValueError, match="answers with weights of their own need the loss of this model"):
        model(**batch)
    cut = [{**samples[0], "weights": samples[0]["weights"][:-1]}]
    with pytest.raises(ValueError, match="one weight per token, got 15 for 16 tokens"):
        collate(cut)
