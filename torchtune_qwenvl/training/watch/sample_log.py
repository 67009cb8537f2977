"""Log the first samples to wandb as the model sees them, if the config has `log_samples: true`."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from torchtune_qwenvl.data.samples import SkippedSample
from torchtune_qwenvl.data.streams.dataset import first_samples
from torchtune_qwenvl.transforms.images.unpatch import images_of


def log_samples(
    dataset: Dataset, transform: Any, on_bad_sample: str, on_too_long: str = "raise", count: int = 4
) -> None:
    """Log text, trained text and images of the first `count` samples as a wandb table.

    Raises:
        ValueError: no wandb run is open; samples can be logged only there.
    """
    wandb = running_wandb()
    samples = first_samples(dataset, count, on_bad_sample, on_too_long)
    rows = [_row(s, transform) for s in samples if not isinstance(s, SkippedSample)]
    n_images = max((len(images) for _, _, images in rows), default=0)
    table = wandb.Table(columns=["text", "trained on", *(f"image {i + 1}" for i in range(n_images))])
    for text, trained, images in rows:
        table.add_data(text, trained, *map(wandb.Image, images), *[None] * (n_images - len(images)))
    wandb.log({"samples": table})


def running_wandb() -> Any:
    """The module `wandb`; a ValueError if it has no open run."""
    try:
        import wandb

        if wandb.run is not None:
            return wandb
    except ImportError:
        pass  # same as no open run
    raise ValueError(
        "log_samples: true sends texts and images to wandb, but no wandb run is open: set "
        "metric_logger=torchtune.training.metric_logging.WandBLogger, or log_samples=false."
    )


def _row(sample: Any, transform: Any) -> tuple[str, str, list[Image.Image]]:
    vision = sample["encoder_input"]["vision"]
    images = images_of(vision["images"], vision["grid_thw"], transform)
    trained = [t for t, masked in zip(sample["tokens"], sample["mask"], strict=True) if not masked]
    return shortened(sample["tokens"], transform), shortened(trained, transform), images


def shortened(tokens: Sequence[int], transform: Any) -> str:
    """Text with special tokens; repeated placeholders of images and videos are reduced to one."""
    visual = (transform.image_token_id, transform.video_token_id)
    short: list[int] = []
    for token, run in groupby(tokens):
        short += [token] if token in visual else run
    return transform.decode(short, truncate_at_eos=False, skip_special_tokens=False)
