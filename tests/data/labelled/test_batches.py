"""Splits, augmentation and batches: the same pixels whatever the number of workers, and after a resume."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from torchtune_qwenvl.data import build_loader
from torchtune_qwenvl.data.labelled import (
    Augmented,
    Draw,
    EpochSampler,
    ImageCollate,
    LabelledImages,
    ToFloat,
    image_folder,
    split_off,
)

SIDE, PATCH, CLASSES = 12, 4, 3


def images_of(counts: list[int]) -> LabelledImages:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 3), dtype=np.uint8)
    return LabelledImages(pixels, labels, [f"c{i}" for i in range(len(counts))], name="made up")


IMAGES = images_of([9, 7, 8])
STEPS = v2.Compose(
    [
        v2.RandomCrop(8, padding=1),
        v2.RandomHorizontalFlip(),
        v2.RandAugment(),
        ToFloat(),
        v2.RandomErasing(p=0.5),
    ]
)


def loader(workers: int, mixed: bool = True, rank: int = 0, world_size: int = 1, data: Any = None) -> Any:
    data = data or Augmented(IMAGES, STEPS, seed=1, multiple=PATCH)
    mixes = [v2.MixUp(alpha=0.8, num_classes=CLASSES), v2.CutMix(num_classes=CLASSES)]
    return build_loader(
        data,
        batch_size=5,
        sampler=EpochSampler(len(data), seed=3, rank=rank, world_size=world_size),
        collate=ImageCollate(patch_size=PATCH, mixes=mixes if mixed else (), seed=1),
        num_workers=workers,
        filler={"pixels": torch.zeros(3, 8, 8)},
    )


def epoch(batches: Any, number: int) -> list[dict[str, Any]]:
    batches.set_epoch(number)
    return [batch.inputs for batch in batches]


def assert_same(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one["numbers"] == other["numbers"] and one["grid_thw"] == other["grid_thw"]
        for name in ("pixel_values", "targets", "labels"):
            assert torch.equal(one[name], other[name]), name


def test_workers_and_random_state_change_nothing() -> None:
    expected = [epoch(loader(0), number) for number in (0, 1)]
    torch.manual_seed(17)
    before = torch.get_rng_state()
    for workers in (0, 2):
        batches = loader(workers)
        for number in (1, 0):  # in another order, with the same workers
            assert_same(epoch(batches, number), expected[number])
    assert torch.equal(torch.get_rng_state(), before)
    first, second = ({n for batch in e for n in batch["numbers"]} for e in expected)
    assert first == second == set(range(len(IMAGES)))
    same = Augmented(IMAGES, STEPS, seed=1)
    assert not torch.equal(same[Draw(0, 0)]["pixels"], same[Draw(0, 1)]["pixels"])
    assert not torch.equal(same[Draw(0, 0)]["pixels"], Augmented(IMAGES, STEPS, seed=2)[Draw(0, 0)]["pixels"])


def test_resumed_in_the_middle() -> None:
    expected = epoch(loader(0), 2)
    batches = loader(2)
    batches.set_epoch(2)
    first = iter(batches)
    done = [next(first).inputs for _ in range(2)]
    state = batches.state_dict()
    resumed = loader(1)
    resumed.load_state_dict(state)
    assert_same(done + [batch.inputs for batch in resumed], expected)


def test_patches_are_the_pixels_in_merge_order() -> None:
    """2 x 4 patches with m = 2 come in the order 0 1 4 5 2 3 6 7; without a transform they stay bytes."""
    pixels = torch.arange(8).view(2, 4).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    sample = {"pixels": pixels[None].to(torch.uint8), "label": 1, "number": 0, "epoch": 0}
    batch = ImageCollate(patch_size=PATCH, merge_size=2)([sample])
    assert batch["pixel_values"].dtype == torch.uint8 and batch["grid_thw"] == [[1, 2, 4]]
    assert batch["pixel_values"][:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_normalised_as_the_seed_does() -> None:
    image = IMAGES.image(0)
    usual = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)])
    assert torch.equal(ToFloat([0.5], [0.5])(image), usual(image))


def test_mixed_targets_sum_to_one_and_keep_the_labels() -> None:
    for batch in epoch(loader(0), 0):
        assert batch["targets"].shape == (len(batch["numbers"]), CLASSES)
        assert torch.allclose(batch["targets"].sum(dim=1), torch.ones(len(batch["numbers"])))
        assert batch["labels"].tolist() == [IMAGES.labels[number] for number in batch["numbers"]]
    for batch in epoch(loader(0, mixed=False), 0):
        assert torch.equal(batch["targets"], batch["labels"])


def test_ranks_share_an_epoch_and_run_as_many_batches() -> None:
    shares = [epoch(loader(0, rank=rank, world_size=2), 0) for rank in (0, 1)]
    assert len({len(share) for share in shares}) == 1
    seen = Counter(n for share in shares for batch in share for n in batch["numbers"] if n >= 0)
    assert seen == Counter(range(len(IMAGES)))


def test_bad_files(tmp_path: Path) -> None:
    for number in range(6):
        file = tmp_path / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file)
    broken = tmp_path / "class1" / "3.png"
    broken.write_bytes(b"no picture")
    data = Augmented(image_folder(str(tmp_path)), torch.nn.Identity(), seed=0)
    common = {
        "batch_size": 6,
        "sampler": EpochSampler(6, shuffle=False),
        "collate": ImageCollate(patch_size=4),
    }
    with pytest.raises(ValueError, match=str(broken)):
        list(build_loader(data, **common))
    common["sampler"] = EpochSampler(6, shuffle=False)
    (batch,) = build_loader(data, on_bad_sample="skip", **common)
    assert batch.samples == 5 and [str(broken) in skipped.reason for skipped in batch.skipped] == [True]
    assert batch.inputs["numbers"] == [0, 1, 2, 3, 5]


def test_a_batch_of_bad_files_only_is_a_filler() -> None:
    batch = ImageCollate(patch_size=PATCH, mixes=[v2.CutMix(num_classes=CLASSES)])(
        [{"pixels": torch.zeros(3, 8, 8)}]
    )
    assert batch["targets"].tolist() == [-100] and batch["pixel_values"].shape == (4, 48)


def test_sizes_that_do_not_fit_are_refused_with_the_place() -> None:
    data = Augmented(IMAGES, ToFloat(), seed=0, multiple=5)
    with pytest.raises(ValueError, match=r"12 x 12 pixels after the transforms: expected multiples of 5"):
        data[Draw(0, 0)]
    with pytest.raises(ValueError, match=r"made up, image \d+ \(from 0\).*multiples of 5"):
        next(iter(loader(0, data=data)))
    other = {"pixels": torch.zeros(3, 8, 4), "label": 0, "number": 1, "epoch": 0}
    sample = {"pixels": torch.zeros(3, 8, 8), "label": 0, "number": 0, "epoch": 0}
    with pytest.raises(ValueError, match="mixing needs images of one size"):
        ImageCollate(patch_size=4, mixes=[v2.CutMix(num_classes=CLASSES)])([sample, other])
    batch = ImageCollate(patch_size=4)([sample, other])
    assert batch["grid_thw"] == [[1, 2, 2], [1, 2, 1]] and len(batch["pixel_values"]) == 6


def test_split_is_stratified_and_seeded() -> None:
    images = images_of([20, 10, 2, 1])
    training, validation = split_off(images, 0.2, seed=5)
    assert Counter(validation.labels) == {0: 4, 1: 2, 2: 1} and len(training) + len(validation) == 33
    again = split_off(images, 0.2, seed=5)[1]
    other = split_off(images, 0.2, seed=6)[1]
    places = [[each.where(i) for i in range(len(each))] for each in (validation, again, other, training)]
    assert places[0] == places[1] != places[2] and not set(places[0]) & set(places[3])
    assert torch.equal(validation.image(0), images.image(int(places[0][0].split()[-3])))
    with pytest.raises(ValueError, match="val_share: expected a number between 0 and 1, got 1"):
        split_off(images, 1, seed=0)
    with pytest.raises(ValueError, match="no class has two images"):
        split_off(images_of([1, 1]), 0.5, seed=0)
