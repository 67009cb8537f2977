"""What `log_samples: true` shows is what the model sees."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from fake_wandb import FakeWandb
from torchtune.data import Message

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.training.watch.sample_log import log_samples
from torchtune_qwenvl.transforms.images.unpatch import patches_to_image


def sample_of(transform: Any, *images: Any) -> dict[str, Any]:
    parts = [{"type": "image", "content": image} for image in images]
    user = Message("user", [*parts, {"type": "text", "content": "What is it?"}])
    return transform({"messages": [user, Message("assistant", "A photo.")]})


@pytest.mark.parametrize("dtype", ["uint8", "fp32"])
def test_patches_become_the_image_again(tiny_folder: Any, dtype: str) -> None:
    image = tiny.photo(84, 140)  # multiples of 28: the transform does not resize
    transform = load_transform(tiny_folder, dtype=dtype)
    sample = sample_of(transform, image)
    vision = sample["encoder_input"]["vision"]
    again = patches_to_image(vision["images"][0], vision["grid_thw"][0].tolist(), transform)
    assert torch.equal(again, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_table(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict] = []
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(log=logged.append))
    transform = load_transform(tiny_folder, dtype="uint8")
    dataset = [sample_of(transform, tiny.photo(56, 84), tiny.photo(56, 56)), sample_of(transform)]
    log_samples(dataset, transform, "raise")
    table = logged[0]["samples"]
    assert table.columns == ["text", "trained on", "image 1", "image 2"]
    (text, trained, *images), (_, _, *none) = table.rows
    assert text.count("<|image_pad|>") == 2 and "What is it?" in text
    assert trained == "A photo.<|im_end|>\n"
    assert images == [(56, 84, 3), (56, 56, 3)] and none == [None, None]


def test_nothing_leaves_without_a_run(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    with pytest.raises(ValueError, match="no wandb run is open"):
        log_samples([], None, "raise")
