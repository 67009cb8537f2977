"""Datasets, collate and loader: from a file of conversations to batches.

Files:

    records/        reads records from files and tables, and finds what they name
    order/          which sample comes when: shuffling, mixing, packing
    streams/        records that come one after the other, without numbers
    samples         what is asked of a dataset, and the wrappers of foreign ones
    joined          sequences counted through as one
    notes           what is said about records that are read
    guarded         what happens to a bad sample
    chat_dataset    `vision_chat_dataset`: the dataset of conversations
    mixed_dataset   `mixed_dataset`: several datasets, mixed by weights
    sizes           measures the lengths of all samples
    length_cache    keeps measured lengths in a file
    collate         samples -> one batch of tensors
    reported        what a data worker reports for each sample
    loader          batches for one rank, read by data workers
    workers         how data workers are started
"""

from torchtune_qwenvl.data.chat_dataset import VisionChatDataset, vision_chat_dataset
from torchtune_qwenvl.data.collate import collate
from torchtune_qwenvl.data.guarded import Guarded
from torchtune_qwenvl.data.loader import Batch, Loader, build_loader
from torchtune_qwenvl.data.mixed_dataset import MixedDataset, mixed_dataset
from torchtune_qwenvl.data.order.mixture import Mixture
from torchtune_qwenvl.data.order.packed_sampler import PackedSampler
from torchtune_qwenvl.data.order.packing import Packer
from torchtune_qwenvl.data.order.sampler import ResumableSampler
from torchtune_qwenvl.data.samples import Samples, SkippedSample
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
    "Samples",
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
