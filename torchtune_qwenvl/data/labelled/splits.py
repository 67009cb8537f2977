"""A validation set out of the training set, the same share of every class."""

from __future__ import annotations

import torch

from torchtune_qwenvl.data.labelled.dataset import LabelledImages


def split_off(images: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """(training, validation): of each class this share is validated on, at least one image if it has two.

    Args:
        images: all of them.
        share: between 0 and 1.
        seed: decides which; the same seed gives the same split.

    Raises:
        ValueError: a share outside 0 to 1, or classes too small to be split.
    """
    if not 0 < share < 1:
        raise ValueError(f"val_share: expected a number between 0 and 1, got {share}")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(images.labels)
    validation: list[int] = []
    for label in range(len(images.class_names)):
        own = (labels == label).nonzero().flatten()
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        if count > 0:
            validation += own[torch.randperm(len(own), generator=generator)[:count]].tolist()
    if not validation:
        raise ValueError(f"{images.name}: no class has two images, so nothing can be held out for validation")
    held_out = set(validation)
    rest = [i for i in range(len(images)) if i not in held_out]
    return images.select(rest, f"{images.name} (training)"), images.select(
        sorted(held_out), f"{images.name} (validation)"
    )
