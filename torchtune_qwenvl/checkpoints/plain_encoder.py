"""What no original has: the folder of a plain ViT, and the classifier next to an encoder."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from torchtune_qwenvl.checkpoints.folder import CONFIG, WEIGHTS
from torchtune_qwenvl.checkpoints.shards import Entry, Shard, write_shard
from torchtune_qwenvl.checkpoints.writing import check_out_folder
from torchtune_qwenvl.durable import replaced_folder
from torchtune_qwenvl.json_files import write_json
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer

HEAD = "head.safetensors"


def save_plain(encoder: VisionTransformer, out: Path, dtype: torch.dtype | None) -> Path:
    """A plain ViT under our own names; config.json holds the builder's arguments."""
    if encoder.config is None:
        raise ValueError("this encoder belongs to a larger model: give the folder it came from as source")
    check_out_folder(out)
    head = getattr(encoder.head, "out_features", 0)
    config = {**encoder.config, "num_classes": head, "global_pool": encoder.global_pool}
    weights = {
        n: p.detach() if dtype is None else p.detach().to(dtype) for n, p in encoder.named_parameters()
    }
    entries = {name: Entry(weight.dtype, tuple(weight.shape)) for name, weight in weights.items()}
    with replaced_folder(out) as work:
        write_json(work / CONFIG, config)
        write_shard(work / WEIGHTS, Shard(WEIGHTS, entries, {"format": "pt"}), weights.values())
    return out


def save_head(encoder: VisionTransformer, path: Path) -> None:
    """Write an encoder's classifier, if it has one."""
    if isinstance(encoder.head, nn.Linear):
        weights = {name: p.detach().cpu().contiguous() for name, p in encoder.head.named_parameters()}
        save_file(weights, str(path), metadata={"global_pool": encoder.global_pool})


def load_head(encoder: VisionTransformer, path: Path) -> None:
    """Give an encoder the classifier in a file, if there is one."""
    if not path.is_file():
        return
    with safe_open(str(path), framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        pool = (file.metadata() or {}).get("global_pool")
    encoder.reset_classifier(len(weights["weight"]), pool)
    encoder.head.load_state_dict(weights)
