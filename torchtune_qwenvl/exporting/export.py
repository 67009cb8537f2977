"""The result of a finished run: folders that transformers, PEFT and servers load.

    output_dir/model/      the whole model, LoRA merged, in the layout of the folder it came from
    output_dir/adapter/    LoRA and all fully trained parts, in PEFT's form

Frozen weights are copied from the folder they came from, which may be more exact than the run's bf16.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from torchtune_qwenvl.checkpoints.adapters.peft_export import ADAPTER_CONFIG, save_adapter_folder
from torchtune_qwenvl.checkpoints.embedding_rows import resized_rows
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder, check_disk_space
from torchtune_qwenvl.checkpoints.merged_weights import lora_scaling
from torchtune_qwenvl.checkpoints.weight_plan import Weights, plan_weights
from torchtune_qwenvl.checkpoints.writing import check_out_folder, folder_size, save_folder
from torchtune_qwenvl.distributed import GatheredState, World
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.modules.adapters.lora import is_adapter
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.step.precision import compute_dtype


def export(
    model: VisionLanguageModel,
    world: World,
    source: str | Path,
    output_dir: Path,
    dtype: str | None = None,
    merge_adapter: bool = True,
) -> dict[str, Path]:
    """Write `model/`, `adapter/` or both, and read them back. All ranks must call this; rank 0 writes.

    Args:
        model: the trained model, sharded or whole.
        world: the processes that share it.
        source: the checkpoint folder it came from; tokenizer and other small files are copied from there.
        output_dir: the folder that gets `model/` and `adapter/`.
        dtype: "bf16" or "fp32" for all weights; None: those of `source`.
        merge_adapter: with LoRA, write `model/`, too.

    Returns:
        "model" and "adapter" to the folders written; empty on other ranks than 0.

    Raises:
        ValueError: on all ranks: the disk is too small, a file cannot be written, or what was written cannot
            be read back.
    """
    written: dict[str, Path] = {}
    with world.together(), GatheredState(model, world) as trained:
        if world.is_main:
            written = write_folders(trained, model, source, output_dir, dtype, merged=merge_adapter)
    return written


def check_export(
    model: VisionLanguageModel,
    world: World,
    source: str | Path,
    output_dir: Path,
    dtype: str | None = None,
    merge_adapter: bool = True,
) -> None:
    """Raise before training what would stop `export` after it; all ranks must call. Arguments as in `export`.

    Raises:
        ValueError: an unknown dtype, something else where `model/` or `adapter/` goes, or too small a disk
            for them, computed from the headers of `source`.
    """
    with world.together():
        if world.is_main:
            target = compute_dtype(dtype) if dtype else None
            has_adapter = bool(lora_scaling(model))
            needed = 0
            if has_adapter:
                check_out_folder(output_dir / "adapter", Path(source), proof=ADAPTER_CONFIG)
                needed += sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
            if merge_adapter or not has_adapter:
                check_out_folder(output_dir / "model", Path(source))
                with CheckpointFolder(source) as files:
                    needed += folder_size(files, target)
            check_disk_space(output_dir, needed)


def write_folders(
    trained: Mapping[str, Tensor],
    model: VisionLanguageModel,
    source: str | Path,
    output_dir: Path,
    dtype: str | None = None,
    *,
    merged: bool = True,
    adapter: bool = True,
) -> dict[str, Path]:
    """Write `model/`, `adapter/` or both; a model without LoRA has no adapter.

    Args:
        trained: whole tensors of the trained parameters, by our names; each is read when it is written.
        model: a model with these names and shapes, including LoRA; it may be on the meta device.
        source, output_dir, dtype: as in `export`.
        merged: write `model/`; without LoRA it is always written.
        adapter: write `adapter/` if the model has LoRA.

    Returns:
        "model" and "adapter" to the folders written.
    """
    scaling = lora_scaling(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    written: dict[str, Path] = {}
    with CheckpointFolder(source) as files:
        table = get_family(files.config).weights
        state = Weights(trained, plan_weights(files, table, shapes))
        if scaling and adapter:
            full = [name for name in trained if not is_adapter(name)]
            out = save_adapter_folder(state, output_dir / "adapter", source, scaling=scaling, full=full)
            written["adapter"] = out
        if merged or not scaling:
            target = compute_dtype(dtype) if dtype else None
            out, rows = output_dir / "model", resized_rows(model)
            written["model"] = save_folder(state, out, source, scaling=scaling, dtype=target, rows=rows)
            with CheckpointFolder(written["model"]) as again:
                plan_weights(again, table, shapes)
    return written
