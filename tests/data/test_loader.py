"""build_loader: the same batches with any number of workers, skips counted, resume without decoding."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from torchtune_qwenvl.data import Batch, Loader, ResumableSampler, SkippedSample, build_loader
from torchtune_qwenvl.transforms.errors import BadSample

PAD = 7
N = 11


class Numbers(Dataset):
    """Sample i has i + 2 tokens i; samples in `bad` are broken, samples in `cut` lost turns.

    Every sample read leaves a file in `trace`, since workers share no memory with the test.
    """

    def __init__(
        self, bad: tuple[int, ...] = (), cut: tuple[int, ...] = (), trace: Path | None = None
    ) -> None:
        self.bad, self.cut, self.trace = bad, cut, trace

    def __len__(self) -> int:
        return N

    def where(self, index: int) -> str:
        return f"numbers.json, sample {index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.trace is not None:
            (self.trace / str(index)).touch()
        if index in self.bad:
            raise BadSample("broken")
        size = index + 2
        sample = {
            "tokens": [index] * size,
            "mask": [True] + [False] * (size - 1),
            "input_pos": torch.zeros(size, 3, dtype=torch.int64),
            "encoder_input": {
                "vision": {
                    "images": [torch.full((4, 6), index, dtype=torch.uint8)],
                    "grid_thw": torch.tensor([[1, 2, 2]]),
                }
            },
        }
        return {**sample, "dropped_turns": index} if index in self.cut else sample


def make(dataset: Dataset, workers: int = 0, batch_size: int = 2, **sampler: Any) -> Loader:
    return build_loader(
        dataset,
        batch_size=batch_size,
        sampler=ResumableSampler(N, **sampler),
        padding_idx=PAD,
        on_bad_sample="skip",
        num_workers=workers,
    )


def flat(batch: Batch) -> list[Any]:
    inputs = batch.inputs
    tensors = (
        *(inputs[key] for key in ("tokens", "labels", "input_pos")),
        *inputs["encoder_input"]["vision"].values(),
        inputs["layout"]["labelled"],
    )
    return [*(tensor.tolist() for tensor in tensors), batch.samples, batch.tokens, batch.skipped]


def test_workers_change_nothing() -> None:
    """Two epochs, bad samples among them, with persistent workers."""
    runs = []
    for workers in (0, 2):
        loader = make(Numbers(bad=(3, 4)), workers, seed=1)
        batches = [flat(batch) for batch in loader]
        loader.sampler.set_position(1)
        runs.append((batches, [flat(batch) for batch in loader], loader.skipped))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_counts_what_is_in_a_batch() -> None:
    first, *_ = make(Numbers(), shuffle=False)
    assert (first.samples, first.tokens) == (2, 2 + 3)
    assert first.inputs["tokens"].tolist() == [[0, 0, PAD], [1, 1, 1]]


def test_skipped_samples_shrink_the_batch_are_logged_once_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    loader = make(Numbers(bad=(1, 4, 5)), shuffle=False)
    batches = list(loader)
    assert [batch.samples for batch in batches] == [1, 2, 0, 2, 2, 1]
    assert batches[0].skipped == (SkippedSample(1, "numbers.json, sample 1: broken"),)
    loader.sampler.set_position(1)
    list(loader)
    assert loader.skipped == {f"numbers.json, sample {i}: broken": 2 for i in (1, 4, 5)}
    assert [record.message for record in caplog.records] == [
        "skipped: numbers.json, sample 1: broken (1 skipped so far on this rank)",
        "skipped: numbers.json, sample 4: broken (2 skipped so far on this rank)",
        "skipped: numbers.json, sample 5: broken (3 skipped so far on this rank)",
    ]


def test_an_empty_batch_is_one_pad_token_without_labels() -> None:
    """Skipped away on rank 0, or without samples at the end of an epoch on rank 1."""
    skipped = next(iter(make(Numbers(bad=(0, 2)), shuffle=False, world_size=2)))
    last = list(make(Numbers(), shuffle=False, rank=1, world_size=2, batch_size=5))[-1]
    for batch in (skipped, last):
        assert (batch.samples, batch.tokens) == (0, 0)
        assert batch.inputs["tokens"].tolist() == [[PAD]] and batch.inputs["labels"].tolist() == [[-100]]
        assert batch.inputs["input_pos"].shape == (1, 1, 3)
        assert batch.inputs["layout"]["labelled"].numel() == 0
        assert batch.inputs["encoder_input"]["vision"]["grid_thw"].shape == (0, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_raise_stops_with_the_message(workers: int) -> None:
    loader = build_loader(Numbers(bad=(3,)), batch_size=2, sampler=ResumableSampler(N), num_workers=workers)
    with pytest.raises(
        BadSample, match=r"^numbers\.json, sample 3: broken; on_bad_sample=skip leaves such samples out$"
    ):
        list(loader)


def test_dropped_turns_are_counted() -> None:
    loader = make(Numbers(cut=(2, 3)), shuffle=False)
    assert [batch.dropped_turns for batch in loader] == [0, 5, 0, 0, 0, 0]
    assert loader.dropped_turns == 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_resume_at_any_batch_reads_only_what_is_left(tmp_path: Path, workers: int, stop: int) -> None:
    whole = [flat(batch) for batch in make(Numbers(bad=(4,)), seed=2)]
    stopped = make(Numbers(bad=(4,)), workers, seed=2)
    batches = iter(stopped)
    for _ in range(stop):
        next(batches)
    resumed = make(Numbers(bad=(4,), trace=tmp_path), workers, seed=2)
    resumed.load_state_dict(stopped.state_dict())
    assert len(resumed) == len(whole) - stop
    assert [flat(batch) for batch in resumed] == whole[stop:]
    left = N - min(stop * 2, N)
    assert len(list(tmp_path.iterdir())) == left and resumed.state_dict()["samples_done"] == N


@pytest.mark.gpu
def test_pinned_batches() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch pins memory for a CUDA device, and there is none")
    for workers in (0, 1):
        for batch in make(Numbers(), workers):
            assert batch.inputs["encoder_input"]["vision"]["pixel_values"].is_pinned()
