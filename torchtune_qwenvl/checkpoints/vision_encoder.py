"""The vision encoder alone: out of a whole checkpoint, in a folder of its own, and back into the whole.

encoder = load_vision_encoder(folder)               reads the vision weights only; other shards may be absent
save_vision_encoder(encoder, out, source=folder)    a folder that transformers' AutoModel loads
merge_vision_encoder(encoder, whole_folder, out)    the whole model, with this encoder in it
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from torchtune_qwenvl.checkpoints.folder import CONFIG, WEIGHTS, CheckpointFolder
from torchtune_qwenvl.checkpoints.loading import fill, set_stored_dtypes
from torchtune_qwenvl.checkpoints.merged_weights import MergedWeights, lora_scaling
from torchtune_qwenvl.checkpoints.plain_encoder import HEAD, load_head, save_head, save_plain
from torchtune_qwenvl.checkpoints.shards import Shard, write_shard
from torchtune_qwenvl.checkpoints.vision_files import THEIRS, bare_name, opened, plan_encoder
from torchtune_qwenvl.checkpoints.weight_plan import Weights, plan_weights
from torchtune_qwenvl.checkpoints.writing import check_out_folder, save_folder
from torchtune_qwenvl.durable import replaced_folder
from torchtune_qwenvl.json_files import write_json
from torchtune_qwenvl.models import ENCODER_SUFFIX, get_family
from torchtune_qwenvl.models.build import build_vision_encoder
from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.vit import vit_from_config
from torchtune_qwenvl.models.weight_table import OUR_ENCODER, WeightTable
from torchtune_qwenvl.modules.adapters.lora import is_adapter
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer

# Families whose encoder has the type of another family's.
_SAME_ENCODER = {"glm46v": "glm4v", "qwen3_vl_moe": "qwen3_vl"}
_IMAGE_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def load_vision_encoder(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **builder_arguments: Any,
) -> VisionTransformer:
    """Load a vision encoder; no other weight is read, and shards without vision weights may be absent.

    Args:
        folder: a whole checkpoint folder, or one of an encoder alone (of `save_vision_encoder` or
            transformers).
        dtype: of all parameters; None keeps each one's dtype in the files (adapters take that of the first).
        device: where the parameters go.
        **builder_arguments: what trains: `encoder_trainable`, `fusion_trainable`, `lora_rank`, …

    Raises:
        ValueError: no such folder, no vision weights in it, a missing or cut off shard, names or shapes that
            do not fit; each names file and tensor.
    """
    with opened(folder) as (files, family):
        scale = files.image_statistics()
        with torch.device("meta"):
            if family is None:
                encoder = vit_from_config(files.config, {**scale, **builder_arguments})
            else:
                encoder = build_vision_encoder(family.slots, files.config, **scale, **builder_arguments)
        plan = plan_encoder(files, family, encoder)
        set_stored_dtypes(encoder, plan, dtype)
        fill(encoder, plan, torch.device(device))
    load_head(encoder, Path(folder) / HEAD)
    return encoder


def save_vision_encoder(
    encoder: VisionTransformer,
    out_folder: str | Path,
    source: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write an encoder as a folder of its own; returns it. LoRA is merged.

    A family's encoder gets the names that transformers' `AutoModel` loads, the `preprocessor_config.json` of
    `source`, and, if it has one, its classifier in `head.safetensors`.

    Args:
        encoder: the encoder.
        out_folder: where to; an older folder of an encoder is replaced.
        source: the folder it came from, whole or of an encoder alone; not needed for `vit_small` and the
            like.
        dtype: of all weights; None keeps those of `source`, or the encoder's.

    Raises:
        ValueError: no source for an encoder that needs one, a source of another encoder, or an `out_folder`
            that is something else.
    """
    if source is None:
        if encoder.config is None:
            raise ValueError("source is missing: give the checkpoint folder that the encoder was loaded from")
        return save_plain(encoder, Path(out_folder), dtype)
    check_out_folder(Path(out_folder), Path(source))
    with opened(source) as (files, family):
        if family is None:
            return save_plain(encoder, Path(out_folder), dtype)
        merged = _merged(encoder, family.weights)
        merged.check(files)
        entries = {bare_name(name, family.weights): entry for name, entry in files.entries()}
        shard = Shard(WEIGHTS, entries, {"format": "pt"})
        shard = shard.cast(dtype) if dtype else shard
        config = _encoder_config(files.config, family)
        if dtype is not None:
            config["dtype"] = str(dtype).removeprefix("torch.")
        with replaced_folder(Path(out_folder)) as work:
            write_json(work / CONFIG, config)
            for name in _IMAGE_FILES:
                if (files.path / name).is_file():
                    shutil.copyfile(files.path / name, work / name)
            tensors = zip(merged.tensors(files), shard.entries.values(), strict=True)
            write_shard(work / WEIGHTS, shard, (tensor.to(entry.dtype) for tensor, entry in tensors))
            save_head(encoder, work / HEAD)
    return Path(out_folder)


def merge_vision_encoder(
    encoder: VisionTransformer,
    folder: str | Path,
    out_folder: str | Path,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a whole checkpoint folder with this encoder in it; returns it. Everything else is copied bit for
    bit.

    Args:
        encoder: of the same family and size as the folder's own; LoRA is merged, a classifier left out.
        folder: the whole checkpoint.
        out_folder: where to.
        dtype: see `save_model`.

    Raises:
        ValueError: an encoder of another size or family, or a folder without a language model.
    """
    with CheckpointFolder(folder) as files:
        if str(files.config.get("model_type", "")).endswith(ENCODER_SUFFIX):
            raise ValueError(f"{folder} holds an encoder alone: give the folder of the whole model")
        family = get_family(files.config)
        with torch.device("meta"):
            model = family.from_config(files.config)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        ours = _state(encoder)
        _check_same_shapes(ours, shapes, folder)
        state = Weights(ours, plan_weights(files, family.weights, shapes))
        return save_folder(state, out_folder, folder, scaling=_scaling(encoder), dtype=dtype)


def read_original_state(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json of a folder, and its vision weights under the original's names, from the encoder on."""
    with opened(folder) as (files, family):
        if family is None:
            raise ValueError(f"{folder} holds a plain ViT: load it with load_vision_encoder")
        state = {bare_name(name, family.weights): files.read(name).clone() for name, _ in files.entries()}
        return files.config, state


def write_original_folder(
    encoder: nn.Module,
    out_folder: str | Path,
    config: dict[str, Any],
    table: WeightTable,
    shapes: Mapping[str, tuple[int, ...]],
) -> Path:
    """Write an encoder that came from no folder under the original's names; returns `out_folder`.

    Args:
        encoder: without adapters.
        out_folder: where to.
        config: config.json.
        table: the family's names.
        shapes: original name, from the encoder on -> shape of the tensors that are no matrices in files.
    """
    pieces: dict[str, dict[int, Tensor]] = {}
    for name, tensor in _state(encoder).items():
        piece = table.theirs(name)
        pieces.setdefault(piece.name.removeprefix(THEIRS), {})[piece.index] = tensor
    weights = {n: torch.cat([parts[i] for i in sorted(parts)]) for n, parts in pieces.items()}
    weights = {name: w.reshape(shapes.get(name, w.shape)).contiguous() for name, w in weights.items()}
    check_out_folder(Path(out_folder))
    with replaced_folder(Path(out_folder)) as work:
        write_json(work / CONFIG, config)
        save_file(weights, str(work / WEIGHTS), metadata={"format": "pt"})
    return Path(out_folder)


def _state(encoder: nn.Module) -> dict[str, Tensor]:
    named = encoder.named_parameters()
    return {OUR_ENCODER + name: p.detach() for name, p in named if not name.startswith("head.")}


def _scaling(encoder: nn.Module) -> dict[str, float]:
    return {OUR_ENCODER + name: factor for name, factor in lora_scaling(encoder).items()}


def _merged(encoder: nn.Module, table: WeightTable) -> MergedWeights:
    return MergedWeights(_state(encoder), _scaling(encoder), table)


def _check_same_shapes(
    ours: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], folder: str | Path
) -> None:
    here = {name: tuple(tensor.shape) for name, tensor in ours.items() if not is_adapter(name)}
    there = {name: shape for name, shape in shapes.items() if name.startswith(OUR_ENCODER)}
    for name in here.keys() | there.keys():
        if here.get(name) != there.get(name):
            raise ValueError(
                f"{folder} has another vision encoder: {name} has the shape {there.get(name)}, in this one "
                f"{here.get(name)}"
            )


def _encoder_config(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """config.json of the encoder alone, in transformers' words."""
    given = config.get("vision_config", config)
    model_type = _SAME_ENCODER.get(family.model_type, family.model_type)
    dtype = next((config[key] for key in ("dtype", "torch_dtype") if config.get(key)), "float32")
    return {
        **family.slots.normalise_vision(given),
        **given,
        "model_type": model_type + ENCODER_SUFFIX,
        "dtype": dtype,
    }
