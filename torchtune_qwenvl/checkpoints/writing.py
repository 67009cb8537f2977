"""Our model -> HF checkpoint folder.

save_model(model, out, source=folder)   names, shapes, dtypes and files are those of the source folder
save_folder(state, out, source)         the same for a mapping, which may gather sharded tensors
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from torchtune_qwenvl.checkpoints.embedding_rows import grown_config, grown_shard, resized_rows
from torchtune_qwenvl.checkpoints.folder import (
    INDEX,
    CheckpointFolder,
    check_disk_space,
)
from torchtune_qwenvl.checkpoints.merged_weights import MergedWeights, lora_scaling
from torchtune_qwenvl.checkpoints.shards import read_shard, write_shard
from torchtune_qwenvl.checkpoints.weight_plan import Weights, plan_weights
from torchtune_qwenvl.durable import replaced_folder
from torchtune_qwenvl.json_files import CONFIG, read_json, write_json
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer


def save_model(
    model: nn.Module, out_folder: str | Path, source: str | Path, dtype: torch.dtype | None = None
) -> Path:
    """Write `model` as a HF checkpoint folder that transformers and servers load; LoRA and DoRA are merged.

    For quantised weights, the unquantised ones of `source` are written; adapters are merged into these.

    Args:
        model: a whole model; for a sharded one, give `save_folder` a mapping that gathers.
        out_folder: as in `save_folder`.
        source: as in `save_folder`.
        dtype: as in `save_folder`.

    Raises:
        ValueError: as in `save_folder`, or `model` is a vision encoder alone.
    """
    if isinstance(model, VisionTransformer):
        raise ValueError(
            "this is a vision encoder alone, which makes no whole model. From torchtune_qwenvl.vision take "
            "save_vision_encoder(encoder, out_folder, source=folder) to write it alone, or "
            "merge_vision_encoder(encoder, folder, out_folder) to write a whole model with it"
        )
    parameters = dict(model.named_parameters())
    state: Mapping[str, Tensor] = {name: p.detach() for name, p in parameters.items() if not is_nf4(p)}
    with CheckpointFolder(source) as files:
        if len(state) < len(parameters):
            shapes = {name: tuple(p.shape) for name, p in parameters.items()}
            state = Weights(state, plan_weights(files, get_family(files.config).weights, shapes))
        rows = resized_rows(model)
        return save_folder(state, out_folder, source, scaling=lora_scaling(model), dtype=dtype, rows=rows)


def save_folder(
    state: Mapping[str, Tensor],
    out_folder: str | Path,
    source: str | Path,
    *,
    scaling: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    rows: int | None = None,
) -> Path:
    """Write a HF checkpoint folder with the weights of `state` in the layout of `source`; returns it.

    Names, shapes, dtypes and files are those of `source`, so unchanged weights are written bit for bit.
    Every other file of `source` is copied. The folder gets its name only when it is complete and its headers
    have been read back; an older checkpoint of that name is replaced.

    Args:
        state: our parameter names to tensors, which are read one at a time.
        out_folder: the folder to write.
        source: the folder that the weights were loaded from.
        scaling: `lora_scaling(model)` if `state` holds adapters to merge.
        dtype: dtype of all weights, also noted in config.json; None: those of `source`.
        rows: of embeddings and head, also noted in config.json, if they were resized; None: as in `source`.

    Raises:
        ValueError: source and state do not belong together, the disk is too small, a weight holds NaN or
            infinity (then nothing is written), or `out_folder` exists and is no checkpoint.
    """
    out, source = Path(out_folder).absolute(), Path(source).absolute()
    check_out_folder(out, source)
    with CheckpointFolder(source) as files:
        merged = MergedWeights(state, scaling or {}, get_family(files.config).weights)
        merged.check(files)
        shards = [grown_shard(shard, merged.table, rows) for shard in files.shards]
        shards = [shard.cast(dtype) if dtype else shard for shard in shards]
        sidecars = files.sidecars()
        check_disk_space(out, sum(s.nbytes for s in shards) + sum(path.stat().st_size for path in sidecars))
        tensors = merged.tensors(files, rows)
        with replaced_folder(out) as work:
            for path in sidecars:
                (work / path.relative_to(source)).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, work / path.relative_to(source))
            for shard in shards:
                converted = (
                    finite(name, next(tensors).to(entry.dtype), out) for name, entry in shard.entries.items()
                )
                write_shard(work / shard.file, shard, converted)
            _write_index(work, files, sum(shard.nbytes for shard in shards), dtype, rows)
            for shard in shards:
                if read_shard(work / shard.file) != shard:
                    raise ValueError(f"{work / shard.file}: read back, it differs from what was written")
    return out


def folder_size(files: CheckpointFolder, dtype: torch.dtype | None = None) -> int:
    """Bytes of what `save_folder` writes: weights in the layout of `files`, and every other file."""
    shards = [shard.cast(dtype) if dtype else shard for shard in files.shards]
    return sum(s.nbytes for s in shards) + sum(path.stat().st_size for path in files.sidecars())


def finite(name: str, tensor: Tensor, out: Path) -> Tensor:
    """The tensor as it is.

    Args:
        name: in the file.
        tensor: about to be written.
        out: the folder that will not be written if the tensor is not finite.

    Raises:
        ValueError: it holds NaN or infinity, from training or because its dtype is too narrow.
    """
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ValueError(
            f"{out} is not written: {name}, as {tensor.dtype}, holds NaN or infinity. Export an earlier "
            "step_N folder, or load the weights again."
        )
    return tensor


def check_out_folder(out: Path, source: Path | None = None, proof: str = CONFIG) -> None:
    """Raise a ValueError if a folder written to `out` would destroy something else.

    An existing folder is replaced only if it holds the file `proof`, which marks an older export.
    """
    out, source = Path(out).resolve(), source and Path(source).resolve()
    if source is not None and (out == source or out in source.parents):
        raise ValueError(f"{out} is or holds the source checkpoint {source}: choose another output folder")
    if out.exists() and not (out / proof).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} exists and holds no {proof}: it is not replaced, choose another output folder"
        )


def _write_index(
    work: Path, files: CheckpointFolder, total: int, dtype: torch.dtype | None, rows: int | None
) -> None:
    """Copy the source's index. If tensors differ from its own, correct it and config.json."""
    if (files.path / INDEX).is_file():
        if dtype is None and rows is None and not files.rewritten:
            shutil.copyfile(files.path / INDEX, work / INDEX)
        else:
            index = read_json(files.path / INDEX)
            index["metadata"] = {**(index.get("metadata") or {}), "total_size": total}
            held = {name for shard in files.shards for name in shard.entries}
            index["weight_map"] = {n: file for n, file in index["weight_map"].items() if n in held}
            write_json(work / INDEX, index)
    config = grown_config(files.config, rows)
    if dtype is not None:
        key = "dtype" if "dtype" in config else "torch_dtype"
        config = {**config, key: str(dtype).removeprefix("torch.")}
    if config != files.config or files.rewritten:
        write_json(work / CONFIG, config)
