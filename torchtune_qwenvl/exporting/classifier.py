"""A trained classifier as files: the encoder with its head, and beside it what the classes are called.

    model/             the encoder and its head, as `save_vision_encoder` writes them
    classifier.json    names of the k classes, transforms and channels of an image

k classes; c, h, w channels, height and width of an image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchtune.config import instantiate
from torchvision.transforms.v2 import Compose

from torchtune_qwenvl.checkpoints.vision_encoder import load_vision_encoder, save_vision_encoder
from torchtune_qwenvl.data.labelled.dataset import grey
from torchtune_qwenvl.modules.adapters.attach import merge_lora
from torchtune_qwenvl.transforms.images.decode import ImageSource, decode_image
from torchtune_qwenvl.transforms.images.patches import cut_patches

ENCODER, CLASSIFIER = "model", "classifier.json"
# A file's transforms are built only from names of these modules: it must not call any function that there is.
TRUSTED = ("torchvision.transforms.v2", "torchtune_qwenvl.data.labelled")


def save_classifier(
    encoder: Any,
    output_dir: Path,
    class_names: Sequence[str],
    transforms: Any,
    source: str | Path | None = None,
) -> None:
    """Write `model/` and `classifier.json` into `output_dir`.

    Args:
        encoder: with its head; LoRA is merged into the weights.
        output_dir: of the run.
        class_names: in the order of the head's rows.
        transforms: config nodes of what turns a uint8 image into pixels.
        source: checkpoint folder that the encoder came from; None: it was built from scratch.
    """
    merge_lora(encoder)
    save_vision_encoder(encoder, output_dir / ENCODER, source=source)
    plain = (
        OmegaConf.to_container(transforms, resolve=True) if OmegaConf.is_config(transforms) else transforms
    )
    description = {
        "class_names": list(class_names),
        "channels": encoder.patch_embed.channels,
        "transforms": plain,
    }
    (output_dir / CLASSIFIER).write_text(json.dumps(description, indent=2), encoding="utf-8")


def load_classifier(output_dir: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """The classifier that a run of train_vit wrote.

    Args:
        output_dir: of the run.
        device: where it goes.

    Raises:
        ValueError: a folder without a classifier, or transforms from outside of torchvision and this package.
    """
    file = Path(output_dir) / CLASSIFIER
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected the output_dir of a finished run of train_vit")
    description = json.loads(file.read_text(encoding="utf-8"))
    for name in (str(node.get("_component_")) for node in description["transforms"]):
        if name.rpartition(".")[0] not in TRUSTED:
            raise ValueError(
                f"{file}: the transform {name} is not from {' or '.join(TRUSTED)}. Make it yourself, and "
                "build a Classifier with it"
            )
    encoder = load_vision_encoder(Path(output_dir) / ENCODER, device=device)
    steps = [instantiate(OmegaConf.create(node)) for node in description["transforms"]]
    transform = Compose(steps or [nn.Identity()])
    return Classifier(encoder, transform, description["class_names"], description["channels"])


class Classifier(nn.Module):
    """Images to class names: an encoder with its head, and how its images are read.

    Args:
        encoder: with its head.
        transform: uint8 [c, h, w] -> pixels [c, h, w].
        class_names: in the order of the head's rows.
        channels: of an image, 3 or 1.

    Example:
        >>> classifier = load_classifier("outputs/train_vit")
        >>> classifier(["cat.jpg", "dog.png"])[0]
        [('cat', 0.98), ('dog', 0.02)]
    """

    def __init__(self, encoder: Any, transform: Any, class_names: Sequence[str], channels: int) -> None:
        super().__init__()
        self.encoder, self.transform = encoder, transform
        self.class_names, self.channels = tuple(class_names), channels
        self.eval()

    def logits(self, images: Sequence[ImageSource]) -> Tensor:
        """[images, k] on the encoder's device.

        Raises:
            BadSample: an image that cannot be read.
        """
        patch, merge = self.encoder.patch_embed.patch, self.encoder.merge
        read = [decode_image(image) for image in images]
        pixels = [self.transform(one if self.channels == 3 else grey(one)) for one in read]
        patches = torch.cat([cut_patches(one, patch, merge).flatten(1) for one in pixels])
        grids = [[1, one.shape[1] // patch, one.shape[2] // patch] for one in pixels]
        return self.encoder(patches.to(self.encoder.patch_embed.weight.device), grids)

    @torch.no_grad()
    def forward(self, images: Sequence[ImageSource], top: int = 5) -> list[list[tuple[str, float]]]:
        """For each image its most probable classes with their probabilities, the highest first."""
        high = self.logits(images).float().softmax(dim=1).topk(min(top, len(self.class_names)))
        rows = zip(high.indices.tolist(), high.values.tolist(), strict=True)
        return [[(self.class_names[i], p) for i, p in zip(*row, strict=True)] for row in rows]
