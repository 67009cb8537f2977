"""The result of a finished run: folders that transformers, PEFT and servers load.

    output_dir/model/      the whole model, LoRA merged, in the layout of the folder it came from
    output_dir/adapter/    LoRA and all fully trained parts, in PEFT's form

Frozen weights are copied from the folder they came from, which may be more exact than the run's bf16.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from torchtune_qwenvl.checkpoints.embedding_rows import resized_rows
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.merged_weights import lora_scaling
from torchtune_qwenvl.checkpoints.peft_export import save_adapter_folder
from torchtune_qwenvl.checkpoints.weight_plan import Weights, plan_weights
from torchtune_qwenvl.checkpoints.writing import save_folder
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
) -> None:
    """Write `model/`, `adapter/` or both, and read them back. All ranks must call this; rank 0 writes.

    Args:
        model: the trained model, sharded or whole.
        world: the processes that share it.
        source: the checkpoint folder it came from; tokenizer and other small files are copied from there.
        output_dir: the folder that gets `model/` and `adapter/`.
        dtype: "bf16" or "fp32" for all weights; None: those of `source`.
        merge_adapter: with LoRA, write `model/`, too.

    Raises:
        ValueError: the disk is too small, or what was written cannot be read back.
    """
    with GatheredState(model, world) as trained:
        if world.is_main:
            write_folders(trained, model, source, output_dir, dtype, merged=merge_adapter)
    world.barrier()


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
