"""Search among digits with an encoder that was trained on them: precision of the five nearest images.

    tune-qwenvl run train_vit --config vit/digits output_dir=outputs/vit_digits
    python benchmarks/search/digits.py outputs/vit_digits/model

Queries are the images that the run held out. The gallery is its training images, or the other held-out ones.
"""

import argparse

import torch
from torch import Tensor

from torchtune_qwenvl.data.labelled import digits
from torchtune_qwenvl.data.labelled.dataset import LabelledImages
from torchtune_qwenvl.data.labelled.splits import split_off
from torchtune_qwenvl.vision import VisionPipeline

VAL_SHARE, SEED = 0.2, 0  # those of configs/vit/digits.yaml


def embed(pipeline: VisionPipeline, images: LabelledImages) -> tuple[Tensor, Tensor]:
    """Unit vectors [n, d] and labels [n]."""
    pooled = pipeline([images[i]["image"] for i in range(len(images))], pool="mean").pooled
    assert pooled is not None
    return torch.nn.functional.normalize(pooled.float(), dim=1), torch.tensor(images.labels)


def main() -> None:
    """Print both precisions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", help="folder of the trained encoder")
    pipeline = VisionPipeline.from_checkpoint(parser.parse_args().encoder)
    training, held_out = (embed(pipeline, part) for part in split_off(digits(), VAL_SHARE, SEED))
    for name, (gallery, labels) in {"training": training, "other held-out": held_out}.items():
        scores = held_out[0] @ gallery.T
        if gallery is held_out[0]:
            scores.fill_diagonal_(-1)
        right = labels[scores.topk(5).indices] == held_out[1][:, None]
        print(f"precision@5 among {name} images: {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
