"""Labelled images for classification: sources, splits, augmentation and batches.

source (files, arrays, `datasets`) ─> LabelledImages ─> Augmented ─> collate ─> patches, grids, targets
"""

from torchtune_qwenvl.data.labelled.arrays import digits, mnist
from torchtune_qwenvl.data.labelled.augment import Augmented, Draw, EpochSampler, ToFloat
from torchtune_qwenvl.data.labelled.cifar import cifar10, cifar100
from torchtune_qwenvl.data.labelled.collate import ImageCollate
from torchtune_qwenvl.data.labelled.dataset import LabelledImages, check_labelled
from torchtune_qwenvl.data.labelled.files import image_folder, image_table
from torchtune_qwenvl.data.labelled.hub import hub_images
from torchtune_qwenvl.data.labelled.loading import build_image_loader
from torchtune_qwenvl.data.labelled.source import labelled_images
from torchtune_qwenvl.data.labelled.splits import split_off

__all__ = [
    "Augmented",
    "Draw",
    "EpochSampler",
    "ImageCollate",
    "LabelledImages",
    "ToFloat",
    "build_image_loader",
    "check_labelled",
    "cifar10",
    "cifar100",
    "digits",
    "hub_images",
    "image_folder",
    "image_table",
    "labelled_images",
    "mnist",
    "split_off",
]
