"""Patches and grids with every family's image settings equal those of transformers' processor bit for bit."""

import pytest
import tiny
import torch
from transformers import AutoImageProcessor

from torchtune_qwenvl import load_transform

SIZES = [(30, 40), (61, 333), (480, 640), (97, 41)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_patches_equal_the_reference(tmp_path, family):
    source = tiny.save_tiny_folder(tmp_path / "source", family=family)
    reference = AutoImageProcessor.from_pretrained(source, use_fast=True)
    transform = load_transform(source).image_transform
    for seed, size in enumerate(SIZES):
        picture = tiny.photo(*size, seed=seed)
        ours = transform({"image": picture})
        theirs = reference(picture, return_tensors="pt")
        assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
