"""The layout of a batch, where its positions are, and its way to the device."""

import pytest
import torch

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.modules.batch import BatchLayout, map_tensors, on_device, placeholder_positions

IMAGE, VIDEO = 7, 8


def sample(*tokens: int, **extra) -> dict:
    n = len(tokens)
    return {
        "tokens": list(tokens),
        "mask": [True] * (n - 1) + [False],
        "input_pos": torch.arange(n)[:, None].expand(-1, 3),
        **extra,
    }


SAMPLES = [sample(1, IMAGE, IMAGE, 2), sample(3, 4), sample(5, VIDEO, 6)]


def test_a_layout_is_a_dict_of_tensors_and_back() -> None:
    batch = collate(SAMPLES, padding_free=True, placeholders=(IMAGE, VIDEO))
    layout = BatchLayout.from_dict(batch["layout"])
    assert layout.as_dict() == batch["layout"]
    assert all(isinstance(entry, torch.Tensor) for entry in batch["layout"].values())
    assert BatchLayout.from_dict(None) == BatchLayout() and BatchLayout().as_dict() == {}
    with pytest.raises(ValueError, match="document_lengths, weights, boundaries, got 'lenghts'"):
        BatchLayout.from_dict({"lenghts": torch.tensor([1])})


def test_the_visual_positions_of_the_samples_are_those_in_the_batch() -> None:
    """Carried by the samples, searched for by placeholder, or one of each."""
    carried = [
        {**one, "visual": placeholder_positions(torch.tensor(one["tokens"]), (IMAGE, VIDEO))}
        for one in SAMPLES
    ]
    for padding_free, expected in ((False, [1, 2, 9]), (True, [1, 2, 7])):
        for samples, placeholders in (
            (SAMPLES, (IMAGE, VIDEO)),
            (carried, None),
            ([*carried[:2], SAMPLES[2]], (VIDEO,)),
        ):
            batch = collate(samples, padding_free=padding_free, placeholders=placeholders)
            assert batch["layout"]["visual"].tolist() == expected
            assert set(batch["tokens"].flatten()[expected].tolist()) == {IMAGE, VIDEO}
    assert "visual" not in collate([carried[0], SAMPLES[1]])["layout"]
    with pytest.raises(ValueError, match="positions in 2 tokens, got 2"):
        collate([sample(1, IMAGE, visual=[1, 2])])


def test_padding_is_known_by_the_lengths() -> None:
    layout = BatchLayout(lengths=torch.tensor([1, 3]))
    real = layout.real_tokens(3)
    assert real is not None and real.tolist() == [True, False, False, True, True, True]
    assert BatchLayout().real_tokens(3) is None


def test_every_tensor_moves_but_what_is_needed_on_the_host() -> None:
    inputs = collate(SAMPLES, padding_free=True)
    moved = on_device(inputs, "meta")
    assert moved["layout"].pop("document_lengths") == [4, 2, 3]
    assert moved["encoder_input"]["vision"].pop("grid_thw") == []
    devices: list[str] = []
    map_tensors(moved, lambda x: devices.append(x.device.type))
    assert devices == ["meta"] * 7  # tokens, labels, input_pos, pixel_values, labelled, lengths, boundaries
    assert inputs["tokens"].device.type == "cpu"
