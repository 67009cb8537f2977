"""Datasets, collate and loader: from a file of conversations to batches."""

from torchtune_qwenvl.data.chat_dataset import VisionChatDataset, vision_chat_dataset
from torchtune_qwenvl.data.collate import collate
from torchtune_qwenvl.data.dataset import Guarded, SkippedSample
from torchtune_qwenvl.data.loader import Batch, Loader, build_loader
from torchtune_qwenvl.data.mixed_dataset import MixedDataset, mixed_dataset
from torchtune_qwenvl.data.order.mixture import Mixture
from torchtune_qwenvl.data.order.packed_sampler import PackedSampler
from torchtune_qwenvl.data.order.packing import Packer
from torchtune_qwenvl.data.order.sampler import ResumableSampler
from torchtune_qwenvl.data.sizes import measure
from torchtune_qwenvl.data.streams.dataset import StreamedDataset
from torchtune_qwenvl.data.streams.mixed import MixedStream
from torchtune_qwenvl.data.streams.sampler import StreamSampler

__all__ = [
    "Batch",
    "Guarded",
    "Loader",
    "MixedDataset",
    "MixedStream",
    "Mixture",
    "PackedSampler",
    "Packer",
    "ResumableSampler",
    "SkippedSample",
    "StreamSampler",
    "StreamedDataset",
    "VisionChatDataset",
    "build_loader",
    "collate",
    "measure",
    "mixed_dataset",
    "vision_chat_dataset",
]
