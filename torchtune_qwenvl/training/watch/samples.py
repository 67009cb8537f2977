"""The first samples as the model sees them, to wandb, when the config asks for it: `log_samples: true`."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchtune_qwenvl.data.samples import SkippedSample
from torchtune_qwenvl.data.streams.dataset import first_samples


def log_samples(dataset: Dataset, transform: Any, on_bad_sample: str, count: int = 4) -> None:
    """Log text, what of it is trained on, and images of the first `count` samples as a wandb table.

    Raises:
        ValueError: no wandb run: samples go nowhere else.
    """
    wandb = running_wandb()
    samples = first_samples(dataset, count, on_bad_sample)
    rows = [_row(s, transform) for s in samples if not isinstance(s, SkippedSample)]
    most = max((len(images) for _, _, images in rows), default=0)
    table = wandb.Table(columns=["text", "trained on", *(f"image {i + 1}" for i in range(most))])
    for text, trained, images in rows:
        pictures = [wandb.Image(image.permute(1, 2, 0).numpy()) for image in images]
        table.add_data(text, trained, *pictures, *[None] * (most - len(images)))
    wandb.log({"samples": table})


def running_wandb() -> Any:
    """The module `wandb` with a run open; a ValueError where there is none."""
    try:
        import wandb

        if wandb.run is not None:
            return wandb
    except ImportError:
        pass  # as good as no run
    raise ValueError(
        "log_samples: true sends texts and images to wandb, but no wandb run is open: set "
        "metric_logger=torchtune.training.metric_logging.WandBLogger, or log_samples=false."
    )


def _row(sample: Any, transform: Any) -> tuple[str, str, list[Tensor]]:
    vision = sample["encoder_input"]["vision"]
    grids = vision["grid_thw"].tolist()
    images = [patches_to_image(p, g, transform) for p, g in zip(vision["images"], grids, strict=True)]
    trained = [t for t, masked in zip(sample["tokens"], sample["mask"], strict=True) if not masked]
    return shortened(sample["tokens"], transform), shortened(trained, transform), images


def shortened(tokens: Sequence[int], transform: Any) -> str:
    """Text with special tokens; of the hundreds of placeholders of an image or video only one."""
    visual = (transform.image_token_id, transform.video_token_id)
    short: list[int] = []
    for token, run in groupby(tokens):
        short += [token] if token in visual else run
    return transform.decode(short, truncate_at_eos=False, skip_special_tokens=False)


def patches_to_image(patches: Tensor, grid: Sequence[int], transform: Any) -> Tensor:
    """The inverse of the transform for the first frame.

    Args:
        patches: [n, c * p * p or c * t * p * p] of one image, uint8 or normalised float.
        grid: (frames, rows, columns) in patches.
        transform: which made them; its patch size, merge size, mean and standard deviation count.

    Returns:
        uint8 [c, height, width].
    """
    made = transform.image_transform
    c, p, m = len(made.image_mean), made.patch_size, made.merge_size
    _, h, w = grid
    blocks = patches[: h * w].view(h // m, w // m, m, m, c, -1, p, p)[:, :, :, :, :, 0]
    image = blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(c, h * p, w * p)
    if image.is_floating_point():
        mean, std = (torch.tensor(values)[:, None, None] for values in (made.image_mean, made.image_std))
        image = ((image.float() * std + mean) * 255).round().clamp(0, 255)
    return image.to(torch.uint8)
