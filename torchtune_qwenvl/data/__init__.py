"""Datasets, collate and loader: from a file of conversations to batches."""

from torchtune_qwenvl.data.collate import collate
from torchtune_qwenvl.data.dataset import SkippedSample
from torchtune_qwenvl.data.sampler import ResumableSampler

__all__ = ["ResumableSampler", "SkippedSample", "collate"]
