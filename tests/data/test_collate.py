"""collate: shapes, padding, labels, frames, and what it refuses."""

from typing import Any

import pytest
import torch

from torchtune_qwenvl.data import SkippedSample, collate

PAD = 9


def sample(
    n: int, images: tuple[int, ...] = (), width: int = 12, dtype: torch.dtype = torch.float32, **extra: Any
) -> dict[str, Any]:
    """n tokens, the last two trained on; one image of `patches` rows per entry of `images`."""
    return {
        "tokens": list(range(100, 100 + n)),
        "mask": [True] * (n - 2) + [False] * 2,
        "input_pos": torch.arange(n).unsqueeze(1).repeat(1, 3),
        "encoder_input": {
            "vision": {
                "images": [torch.full((patches, width), patches).to(dtype) for patches in images],
                "grid_thw": torch.tensor([[1, 2, patches // 2] for patches in images]).reshape(-1, 3).long(),
            }
        },
        **extra,
    }


def test_pads_on_the_right_and_keeps_the_order_of_images() -> None:
    batch = collate([sample(5, (4, 8)), sample(3), sample(4, (6,))], padding_idx=PAD)
    assert batch["tokens"].tolist() == [
        [100, 101, 102, 103, 104],
        [100, 101, 102, PAD, PAD],
        [100, 101, 102, 103, PAD],
    ]
    assert batch["labels"].tolist() == [
        [-100, -100, -100, 103, 104],
        [-100, 101, 102, -100, -100],
        [-100, -100, 102, 103, -100],
    ]
    assert batch["input_pos"].shape == (3, 5, 3) and batch["input_pos"].dtype == torch.int64
    assert batch["input_pos"][1, :, 0].tolist() == [0, 1, 2, 0, 0]
    vision = batch["encoder_input"]["vision"]
    assert vision["pixel_values"].shape == (18, 12)
    assert vision["pixel_values"][:, 0].tolist() == [4.0] * 4 + [8.0] * 8 + [6.0] * 6
    assert vision["grid_thw"].tolist() == [[1, 2, 2], [1, 2, 4], [1, 2, 3]]
    # 5 columns: position 2 of row 0 predicts the first of its labels, and so on.
    assert batch["layout"]["labelled"].tolist() == [2, 3, 5, 6, 11, 12]


def test_padding_free_is_one_row_of_documents() -> None:
    samples = [sample(5, (4, 8)), sample(3), sample(4, (6,))]
    padded, batch = collate(samples, padding_idx=PAD), collate(samples, padding_idx=PAD, padding_free=True)
    assert batch["tokens"].tolist() == [[100, 101, 102, 103, 104, 100, 101, 102, 100, 101, 102, 103]]
    assert batch["labels"].tolist() == [
        [-100, -100, -100, 103, 104, -100, 101, 102, -100, -100, 102, 103],
    ]
    assert batch["input_pos"][0, :, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]
    assert batch["layout"]["document_lengths"].tolist() == [5, 3, 4]
    assert batch["layout"]["labelled"].tolist() == [2, 3, 5, 6, 9, 10]
    for key, value in padded["encoder_input"]["vision"].items():
        assert torch.equal(batch["encoder_input"]["vision"][key], value)
    assert "document_lengths" not in padded["layout"]


def test_the_first_label_of_every_document_is_ignored() -> None:
    samples = [{**sample(3), "labels": [100, 101, 102]}, {**sample(2), "labels": [100, 101]}]
    labels = collate(samples, padding_free=True)["labels"]
    assert labels.tolist() == [[-100, 101, 102, -100, 101]]


def test_only_tensors_and_dicts_of_tensors() -> None:
    def check(tree: Any) -> None:
        assert isinstance(tree, (dict, torch.Tensor))
        for value in tree.values() if isinstance(tree, dict) else ():
            check(value)

    check(collate([sample(3, (4,))], padding_idx=PAD))


@pytest.mark.parametrize("without", ["images", "encoder_input"])
def test_text_only_batch_ships_empty_tensors(without: str) -> None:
    text = sample(3)
    if without == "encoder_input":
        del text["encoder_input"]
    vision = collate([text], padding_idx=PAD)["encoder_input"]["vision"]
    assert vision["pixel_values"].numel() == 0 and vision["pixel_values"].ndim == 2
    assert vision["grid_thw"].shape == (0, 3) and vision["grid_thw"].dtype == torch.int64


def test_given_labels_win_and_the_first_is_never_trained_on() -> None:
    given = sample(3, labels=[100, -100, 102])
    all_of_it = sample(3)
    all_of_it["mask"] = [False] * 3
    batch = collate([given, all_of_it], padding_idx=PAD, ignore_idx=-7)
    assert batch["labels"].tolist() == [[-7, -7, 102], [-7, 101, 102]]
    assert batch["layout"]["labelled"].tolist() == [1, 3, 4]


def test_labels_do_not_write_into_the_sample() -> None:
    labels = torch.tensor([1, 2, 3])
    collate([sample(3, labels=labels)], padding_idx=PAD)
    assert labels.tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_keeps_the_dtype_of_pixels(dtype: torch.dtype) -> None:
    batch = collate([sample(3, (4,), dtype=dtype), sample(3)], padding_idx=PAD)
    assert batch["encoder_input"]["vision"]["pixel_values"].dtype == dtype


def test_repeats_the_frame_of_stills_batched_with_a_clip() -> None:
    """The patch layout is [c, t, p*p]: a still [c, p*p] is repeated inside every channel."""
    still, clip = sample(3, (4,), width=12, dtype=torch.uint8), sample(3, (4,), width=24, dtype=torch.uint8)
    still["encoder_input"]["vision"]["images"][0] = torch.arange(48, dtype=torch.uint8).view(4, 12)
    pixels = collate([still, clip], padding_idx=PAD)["encoder_input"]["vision"]["pixel_values"]
    assert pixels.shape == (8, 24)
    frames = pixels[:4].view(4, 3, 2, 4)
    assert torch.equal(frames[:, :, 0], torch.arange(48, dtype=torch.uint8).view(4, 3, 4))
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "at least one sample"),
        ([{"input_ids": [1]}], r"tokens, input_pos, mask \(or labels\) missing.*Give the dataset one of our"),
        (
            [sample(3), SkippedSample(4, "a.json, sample 4: broken")],
            "a.json, sample 4: broken.*stock recipes",
        ),
        ([sample(3, (4,), dtype=torch.uint8), sample(3, (4,))], "one dtype, got .*float32.*uint8"),
        ([sample(3, (4,), width=12), sample(3, (4,), width=27)], "patches of one width.*12 and 27"),
    ],
)
def test_refuses(samples: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(samples, padding_idx=PAD)
