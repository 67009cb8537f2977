"""Samples -> one batch of tensors and dicts of tensors: right-padded rows, or one row without padding.

    padded         a a a .        padding_free     a a a b b c c c c
                   b b . .                         document_lengths 3 2 4
                   c c c c

Axes: b batch, s sequence, d documents, n patches, m images, k labelled positions, c channels, t frames, p
patch side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from torchtune_qwenvl.data.samples import SkippedSample

CHANNELS = 3


def collate(
    samples: Sequence[Mapping[str, Any]],
    padding_idx: int = 0,
    ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX,
    *,
    padding_free: bool = False,
) -> dict[str, Any]:
    """Pad and join samples of our transforms; also the ``collate_fn`` of torchtune's stock recipes.

    Args:
        samples: what the transform returns: ``tokens``, ``mask`` (True = not trained on), ``input_pos``
            int64 [s, 3], ``encoder_input``; with ``labels`` (torchtune's ``SFTDataset`` adds them) or
            without, then made from ``mask``.
        padding_idx: token id that fills up short rows on the right.
        ignore_idx: label of every position that is not trained on.
        padding_free: put all samples into one row, b = 1, as documents that do not see each other.

    Returns:
        - ``tokens`` int64 [b, s].
        - ``labels`` int64 [b, s], unshifted; the first of each sample is ``ignore_idx``, so that a shift
          never crosses documents.
        - ``input_pos`` int64 [b, s, 3], zero where padded.
        - ``encoder_input["vision"]``: ``pixel_values`` [n, c*t*p*p or c*p*p] and ``grid_thw`` int64 [m, 3],
          both empty without media.
        - ``layout["labelled"]`` int64 [k]: flat indices into b*s of the positions whose *next* token is
          labelled, the only ones the head has to see; ``layout["lengths"]`` int64 [b]: tokens of each row
          without padding.
        - ``layout["document_lengths"]`` int64 [d], only where ``padding_free``.

    Raises:
        ValueError: no samples, a :class:`~torchtune_qwenvl.data.SkippedSample`, a missing key, or images of
            different dtypes or patch sizes.
    """
    if not samples:
        raise ValueError("collate expected at least one sample, got none")
    for sample in samples:
        _check(sample)
    join = _one_row if padding_free else _padded_rows
    tokens = [_row(s["tokens"]) for s in samples]
    labels = join([_labels(s, ignore_idx) for s in samples], ignore_idx)
    lengths = torch.tensor([len(document) for document in tokens])
    layout = {"labelled": labelled_positions(labels, ignore_idx), "lengths": lengths}
    if padding_free:
        layout |= {"lengths": lengths.sum()[None], "document_lengths": lengths}
    return {
        "tokens": join(tokens, padding_idx),
        "labels": labels,
        "input_pos": join([torch.as_tensor(s["input_pos"]) for s in samples], 0),
        "encoder_input": {"vision": _join_vision(samples)},
        "layout": layout,
    }


def labelled_positions(labels: Tensor, ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX) -> Tensor:
    """Flat indices into b*s of the positions whose next token is labelled.

    Args:
        labels: int64 [b, s], unshifted.
        ignore_idx: the label that is not trained on.

    Returns:
        int64 [k], ascending. With labels ``[[-100, 5, 6, -100]]`` it is ``[0, 1]``: position 0 predicts 5,
        position 1 predicts 6.
    """
    next_is_labelled = torch.zeros_like(labels, dtype=torch.bool)
    next_is_labelled[:, :-1] = labels[:, 1:] != ignore_idx
    return next_is_labelled.flatten().nonzero().flatten()


def _padded_rows(documents: list[Tensor], padding: int) -> Tensor:
    return pad_sequence(documents, batch_first=True, padding_value=padding)


def _one_row(documents: list[Tensor], padding: int) -> Tensor:
    return torch.cat(documents)[None]


def _check(sample: Mapping[str, Any] | SkippedSample) -> None:
    if isinstance(sample, SkippedSample):
        raise ValueError(
            f"a skipped sample reached collate: {sample.reason}. torchtune's stock recipes cannot shrink a "
            "batch: correct or remove that sample, or train with torchtune_qwenvl/recipes/finetune.py, which "
            "leaves it out."
        )
    missing = [key for key in ("tokens", "input_pos") if key not in sample]
    if "labels" not in sample and "mask" not in sample:
        missing.append("mask (or labels)")
    if missing:
        raise ValueError(
            f"collate expected the output of a torchtune_qwenvl transform: {', '.join(missing)} missing, got "
            f"the keys {sorted(sample)}. Give the dataset one of our transforms as `tokenizer`."
        )


def _row(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.to(torch.int64, copy=True)
    # Through numpy: SFTDataset's labels are numpy integers, over which torch.as_tensor is slow.
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _labels(sample: Mapping[str, Any], ignore_idx: int) -> Tensor:
    if "labels" in sample:
        labels = _row(sample["labels"])
        labels[labels == CROSS_ENTROPY_IGNORE_IDX] = ignore_idx
    else:
        labels = _row(sample["tokens"])
        labels[torch.as_tensor(sample["mask"], dtype=torch.bool)] = ignore_idx
    labels[:1] = ignore_idx
    return labels


def _join_vision(samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    visions = [s["encoder_input"]["vision"] for s in samples if s.get("encoder_input")]
    images = [image for vision in visions for image in vision["images"]]
    if not images:
        return {"pixel_values": torch.empty(0, 0), "grid_thw": torch.empty(0, 3, dtype=torch.int64)}
    if len({image.dtype for image in images}) > 1:
        # torch.cat would promote raw uint8 pixels to float, beside normalised ones, without a word.
        raise ValueError(
            f"collate expected images of one dtype, got {sorted({str(image.dtype) for image in images})}: "
            "use one transform (one `dtype`) for all datasets of a run."
        )
    grids = [torch.as_tensor(vision["grid_thw"], dtype=torch.int64).reshape(-1, 3) for vision in visions]
    patches = _same_frames(images)
    # One image is the batch already: no copy of what may be tens of megabytes.
    pixel_values = patches[0] if len(patches) == 1 else torch.cat(patches)
    return {"pixel_values": pixel_values, "grid_thw": torch.cat(grids)}


def _same_frames(images: list[Tensor]) -> list[Tensor]:
    """Repeat the single frame of uint8 stills, [n, c*p*p] -> [n, c*t*p*p], where a clip is in the batch.

    Example with c = 2, p*p = 2, t = 2: the row ``[1, 2, 3, 4]`` becomes ``[1, 2, 1, 2, 3, 4, 3, 4]``, since
    the frame axis lies inside the channel axis.
    """
    width = max(image.shape[-1] for image in images)
    return [image if image.shape[-1] == width else _repeat_frame(image, width) for image in images]


def _repeat_frame(image: Tensor, width: int) -> Tensor:
    n, narrow = image.shape
    frames, rest = divmod(width, narrow)
    if rest or narrow % CHANNELS:
        raise ValueError(
            f"collate expected patches of one width, or stills of 1/t of it, got {narrow} and {width}: use "
            "one transform (one patch size) for all datasets of a run."
        )
    return image.view(n, CHANNELS, 1, -1).expand(-1, -1, frames, -1).reshape(n, width)
