"""Samples -> one batch of tensors and dicts of tensors, as right-padded rows or one row without padding.

    padded         a a a .        padding_free     a a a b b c c c c
                   b b . .                         document_lengths 3 2 4
                   c c c c

Axes: b batch, s sequence, d documents, n patches, m images, k labelled positions, c channels, t frames, p
patch side.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from torchtune_qwenvl.data.samples import SkippedSample
from torchtune_qwenvl.modules.attention import boundaries_of
from torchtune_qwenvl.modules.batch import BatchLayout, labelled_positions, placeholder_positions
from torchtune_qwenvl.modules.vision.plan import VisionPlanner, read_grids

CHANNELS = 3


def collate(
    samples: Sequence[Mapping[str, Any]],
    padding_idx: int = 0,
    ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX,
    *,
    padding_free: bool = False,
    placeholders: Collection[int] | None = None,
    planner: VisionPlanner | None = None,
) -> dict[str, Any]:
    """Pad and join samples of our transforms; also the ``collate_fn`` of torchtune's stock recipes.

    Args:
        samples: what the transform returns: ``tokens``, ``mask`` (True = not trained on), ``input_pos``
            int64 [s, 3], ``encoder_input``, ``visual``. With ``labels`` (torchtune's ``SFTDataset`` adds
            them) or without; then they are made from ``mask``.
        padding_idx: token id that fills up short rows on the right.
        ignore_idx: label of every position that is not trained on.
        padding_free: put all samples into one row, b = 1, as documents that do not see each other.
        placeholders: token ids of visual tokens, to find these in samples without ``visual``.
        planner: of the model's vision encoder (``model.vision_encoder.planner``); plans for it here, so that
            the plan can be pinned and sent with the batch.

    A sample may have ``weights``, fp32 [s], of its tokens in the loss; without them all are 1.

    Returns:
        - ``tokens`` int64 [b, s].
        - ``labels`` int64 [b, s], unshifted; the first of each sample is ``ignore_idx``, so that a shift
          never crosses documents.
        - ``input_pos`` int64 [b, s, 3], zero where padded.
        - ``encoder_input["vision"]``: ``pixel_values`` [n, c*t*p*p or c*p*p] and ``grid_thw`` int64 [m, 3],
          both empty without media; with ``planner`` also ``plan``, of the idle encoder without media.
        - ``layout``: :class:`~torchtune_qwenvl.modules.batch.BatchLayout` as a dict. ``visual`` is absent if
          a sample does not have it and ``placeholders`` are unknown; ``document_lengths`` and ``boundaries``
          are there only with ``padding_free``.

    Raises:
        ValueError: no samples, a :class:`~torchtune_qwenvl.data.SkippedSample`, a missing key, visual tokens
            beyond the end of a sample, or images of different dtypes or patch sizes.
    """
    if not samples:
        raise ValueError("collate expected at least one sample, got none")
    for sample in samples:
        _check(sample)
    tokens = [_row(sample["tokens"]) for sample in samples]
    join = _one_row if padding_free else _padded_rows
    labels = join([_labels(sample, ignore_idx) for sample in samples], ignore_idx)
    lengths = torch.tensor([len(row) for row in tokens])
    starts = lengths.cumsum(0) - lengths if padding_free else torch.arange(len(tokens)) * labels.shape[1]
    layout = BatchLayout(
        labelled=labelled_positions(labels, ignore_idx),
        lengths=lengths.sum()[None] if padding_free else lengths,
        visual=_visual_positions(samples, tokens, starts, placeholders),
        document_lengths=lengths if padding_free else None,
        weights=_weights(samples, tokens, join),
        boundaries=boundaries_of(lengths.tolist()) if padding_free else None,
    )
    vision = _join_vision(samples)
    if planner is not None:
        vision["plan"] = plan_for(planner, vision["grid_thw"])
    return {
        "tokens": join(tokens, padding_idx),
        "labels": labels,
        "input_pos": join([torch.as_tensor(s["input_pos"]) for s in samples], 0),
        "encoder_input": {"vision": vision},
        "layout": layout.as_dict(),
    }


def plan_for(planner: VisionPlanner, grid_thw: Tensor) -> Tensor:
    """The plan of a batch with these grids; without any, the one for the encoder's smallest input."""
    return planner.pack(read_grids(grid_thw) or [(1, planner.merge, planner.merge)])


def _visual_positions(
    samples: Sequence[Mapping[str, Any]],
    tokens: Sequence[Tensor],
    starts: Tensor,
    placeholders: Collection[int] | None,
) -> Tensor | None:
    """Flat positions of the visual tokens of all samples, which begin at `starts`."""
    positions = []
    for sample, row, start in zip(samples, tokens, starts, strict=True):
        if "visual" in sample:
            visual = torch.as_tensor(sample["visual"], dtype=torch.int64)
            if len(visual) and visual[-1] >= len(row):
                raise ValueError(
                    f"collate expected `visual` to be positions in {len(row)} tokens, got {int(visual[-1])}: "
                    "cut both, or leave `visual` out of samples that are changed after the transform"
                )
        elif placeholders is not None:
            visual = placeholder_positions(row, placeholders)
        else:
            return None
        positions.append(visual + start)
    return torch.cat(positions)


def _weights(
    samples: Sequence[Mapping[str, Any]],
    tokens: Sequence[Tensor],
    join: Callable[[list[Tensor], int], Tensor],
) -> Tensor | None:
    """Weights of the tokens in the loss, fp32 [b, s]; None if no sample has any."""
    if not any("weights" in sample for sample in samples):
        return None
    given = (sample.get("weights", torch.ones(len(row))) for sample, row in zip(samples, tokens, strict=True))
    rows = [torch.as_tensor(one, dtype=torch.float32) for one in given]
    if wrong := [(len(one), len(row)) for one, row in zip(rows, tokens, strict=True) if len(one) != len(row)]:
        raise ValueError(
            f"collate expected one weight per token, got {wrong[0][0]} for {wrong[0][1]} tokens: cut both"
        )
    return join(rows, 0)


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
        # torch.cat would silently promote raw uint8 pixels to float and join them with normalised ones.
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
    """Repeat the single frame of uint8 stills, [n, c*p*p] -> [n, c*t*p*p], if the batch has a clip.

    Example with c = 2, p*p = 2, t = 2: the row ``[1, 2, 3, 4]`` becomes ``[1, 2, 1, 2, 3, 4, 3, 4]``, because
    the frame axis comes after the channel axis.
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
