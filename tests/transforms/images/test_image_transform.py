"""Patches equal transformers' torchvision backend bit for bit; sizes follow its smart_resize."""

import functools
import importlib

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl import image_processing_qwen2_vl as reference

from torchtune_qwenvl.models.qwen2_5_vl import Qwen2_5_VLImageTransform
from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.decode import decode_image
from torchtune_qwenvl.transforms.images.image_transform import pixel_dtype
from torchtune_qwenvl.transforms.images.resize import smart_resize

PHOTOGRAPHS = (
    *("astronaut", "chelsea", "coffee", "rocket", "cat", "camera", "coins", "moon", "page", "clock", "text"),
    *("hubble_deep_field", "immunohistochemistry", "brick", "grass", "gravel", "logo", "colorwheel"),
)
SIZES = [
    (14, 14),
    (28, 28),
    (98, 98),
    (1, 200),
    (200, 1),
    (27, 57),
    (56, 56),
    (70, 42),
    (300, 17),
    (333, 500),
]


def photographs() -> list[np.ndarray]:
    """The real pictures in scikit-image's wheel, as RGB arrays; those it would download are left out."""
    data = importlib.import_module("skimage.data")
    found = []
    for name in PHOTOGRAPHS:
        if hasattr(data, name) and (name in data.__all__):
            try:
                picture = getattr(data, name)()
            except (ImportError, OSError):
                continue
            found.append(decode_image(picture).permute(1, 2, 0).numpy())
    return found


@functools.cache
def _processor(**limits: int) -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(**limits)


def assert_equals_reference(picture: np.ndarray, limits: dict[str, int], as_jpeg_strides: bool) -> None:
    expected = _processor(**limits)(images=[picture], input_data_format="channels_last", return_tensors="pt")
    chw = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    source = chw if as_jpeg_strides else chw.contiguous()
    ours = Qwen2_5_VLImageTransform(**limits)({"image": source})
    assert torch.equal(ours["pixel_values"], expected["pixel_values"])
    assert torch.equal(ours["image_grid_thw"], expected["image_grid_thw"])
    raw = Qwen2_5_VLImageTransform(**limits, dtype="uint8")({"image": source})["pixel_values"]
    mean = torch.tensor(reference.OPENAI_CLIP_MEAN)[:, None, None] * 255.0
    std = torch.tensor(reference.OPENAI_CLIP_STD)[:, None, None] * 255.0
    frames = ((raw.view(-1, 3, 1, 196) - mean) / std).expand(-1, -1, 2, -1)
    assert torch.equal(frames.flatten(1), expected["pixel_values"])


def test_real_photographs_bit_for_bit():
    pictures = photographs()
    assert len(pictures) >= 12
    for i, picture in enumerate(pictures):
        assert_equals_reference(
            picture, {"min_pixels": 3136, "max_pixels": 1003520}, as_jpeg_strides=i % 3 > 0
        )
        assert_equals_reference(
            picture, {"min_pixels": 3136, "max_pixels": 50176}, as_jpeg_strides=i % 3 == 0
        )


def test_many_sizes_bit_for_bit():
    rng = np.random.default_rng(0)
    sizes = SIZES + [tuple(map(int, np.exp(rng.uniform(2.5, 5.6, 2)))) for _ in range(190)]
    for i, (height, width) in enumerate(sizes):
        limits = [{"min_pixels": 3136, "max_pixels": 1003520}, {"min_pixels": 12544, "max_pixels": 20000}][
            i % 2
        ]
        assert_equals_reference(
            np.asarray(tiny.photo(height, width, seed=i)), limits, as_jpeg_strides=i % 4 > 0
        )


@pytest.mark.parametrize(
    "size, expected",
    {(14, 14): (56, 56), (98, 98): (112, 112), (3000, 4000): (840, 1148), (1, 200): (28, 812)}.items(),
)
def test_known_sizes(size, expected):
    assert smart_resize(*size, factor=28, min_pixels=3136, max_pixels=1003520) == expected


sides = st.integers(1, 5000)


@given(sides, sides, st.sampled_from([28, 32]), st.integers(1, 10**6), st.integers(1, 10**7))
@settings(max_examples=400, deadline=None)
def test_sizes_equal_transformers(height, width, factor, low, more):
    limits = {"factor": factor, "min_pixels": low, "max_pixels": low + more}
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(BadSample, match="aspect ratio"):
            smart_resize(height, width, **limits)
        return
    size = smart_resize(height, width, **limits)
    assert size == reference.smart_resize(height, width, **limits)
    assert all(side > 0 and side % factor == 0 for side in size)


@given(sides, sides)
@settings(max_examples=200, deadline=None)
def test_area_stays_within_the_limits(height, width):
    if max(height, width) > 50 * min(height, width):
        return  # thinner ones need a side of one factor, and may exceed the upper limit
    new_height, new_width = smart_resize(height, width, factor=28, min_pixels=3136, max_pixels=1003520)
    assert 3136 <= new_height * new_width <= 1003520


def test_options_of_one_image():
    transform = Qwen2_5_VLImageTransform(min_pixels=3136, max_pixels=50176, dtype="uint8")
    picture = tiny.photo(300, 400)

    def size(**options) -> list[int]:
        return (transform({"image": picture, **options})["image_grid_thw"][0, 1:] * 14).tolist()

    assert size() == [168, 252]
    assert size(max_pixels=20000) == [112, 140]
    assert size(min_pixels=200704, max_pixels=300000) == [392, 532]
    assert size(resized_height=60, resized_width=200) == [56, 196]
    assert size(resized_height=600, resized_width=2000) == [112, 392]  # held to the limits
    for options, message in [
        ({"min_pixels": 60000}, "min_pixels 60000 is more than max_pixels 50176"),
        ({"max_pixels": 0}, "positive integers"),
        ({"resized_height": 56}, "resized_height and resized_width together"),
        ({"resized_height": 56, "resized_width": "56"}, "positive integers"),
    ]:
        with pytest.raises(BadSample, match=f"image given as Image: .*{message}"):
            transform({"image": picture, **options})


def test_aspect_ratio_names_the_file(tmp_path):
    tiny.photo(3, 603).save(tmp_path / "strip.png")
    with pytest.raises(BadSample, match=r"strip\.png: the aspect ratio of 3 x 603 is over 200 \(crop"):
        Qwen2_5_VLImageTransform()({"image": tmp_path / "strip.png"})


def test_dtypes():
    picture = tiny.photo(60, 60)
    full = Qwen2_5_VLImageTransform()({"image": picture})["pixel_values"]
    half = Qwen2_5_VLImageTransform(dtype="bf16")({"image": picture})["pixel_values"]
    assert full.dtype == torch.float32 and torch.equal(half, full.to(torch.bfloat16))
    assert pixel_dtype(torch.uint8) is pixel_dtype("uint8") is torch.uint8
    for wrong in ("int4", torch.int64):
        with pytest.raises(ValueError, match="expected the dtype of patches to be one of uint8, fp32"):
            pixel_dtype(wrong)


def test_limits_in_the_wrong_order():
    with pytest.raises(ValueError, match="0 < min_pixels <= max_pixels, got 10 and 5"):
        Qwen2_5_VLImageTransform(min_pixels=10, max_pixels=5)
