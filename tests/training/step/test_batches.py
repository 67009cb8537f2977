"""What is counted for a batch: documents, not rows, and never padding."""

import pytest
import tiny
import torch
from cases import Case, ours_like

from torchtune_qwenvl.data.loader import Batch
from torchtune_qwenvl.modules.batch import on_device
from torchtune_qwenvl.training.step.batches import collate_for, work_of
from torchtune_qwenvl.training.watch.flops import FlopCounter

ROWS = ([3, (1, 4, 6), 5], [40], [2, (1, 8, 4), 3, (1, 4, 4), 6], [7])
PAD = 511


@pytest.fixture(scope="module")
def hf():
    return tiny.tiny_hf_model()


def batch(hf, *rows, padding_free: bool) -> Batch:
    samples = Case(hf, *rows).samples
    inputs = collate_for(ours_like(hf), padding_free)(samples, padding_idx=PAD, ignore_idx=-100)
    return Batch(inputs, len(samples), sum(len(sample["tokens"]) for sample in samples))


def test_work_is_that_of_the_documents(hf) -> None:
    flops = FlopCounter(ours_like(hf))
    padded = work_of(batch(hf, *ROWS, padding_free=False), PAD, flops)
    assert work_of(batch(hf, *ROWS, padding_free=True), PAD, flops) == padded
    alone = [work_of(batch(hf, row, padding_free=False), PAD, flops) for row in ROWS]
    assert padded.flops == pytest.approx(sum(work.flops for work in alone), rel=1e-12)
    assert padded.tokens == sum(work.tokens for work in alone) == batch(hf, *ROWS, padding_free=True).tokens


def test_what_packing_compares_is_all_but_head_and_encoder_attention(hf) -> None:
    flops = FlopCounter(ours_like(hf))
    one = batch(hf, ROWS[0], padding_free=True)
    width = one.inputs["encoder_input"]["vision"]["pixel_values"].shape[1]
    whole = flops([one.tokens], 0, [(1, 4, 6)], width)
    attention = flops.encoder.per_frame_pair * 24**2 + flops.encoder.per_window_pair * 24**2
    assert flops.of_sample(one.tokens, 24) + attention == pytest.approx(
        flops([one.tokens], 0, [(1, 4, 6)], flops.encoder.still_width), rel=1e-12
    )
    assert whole > flops.of_sample(one.tokens, 24)


def test_lengths_stay_on_the_host(hf) -> None:
    inputs = on_device(batch(hf, *ROWS, padding_free=True).inputs, torch.device("meta"))
    assert inputs["layout"]["document_lengths"] == [len(s["tokens"]) for s in Case(hf, *ROWS).samples]
    assert inputs["tokens"].device.type == inputs["layout"]["visual"].device.type == "meta"
    assert isinstance(inputs["encoder_input"]["vision"]["grid_thw"], list)
