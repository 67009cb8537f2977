"""What a finished run leaves behind: folders that transformers, PEFT and servers load.

output_dir/model/      the whole model, LoRA merged, in the layout of the folder it came from
output_dir/adapter/    LoRA, and what trained fully beside it, in PEFT's form
"""

from pathlib import Path

from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.modules.lora import is_adapter
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.checkpoint import save_folder
from torchtune_qwenvl.training.distributed import GatheredState, World
from torchtune_qwenvl.training.folder import CheckpointFolder
from torchtune_qwenvl.training.merge import lora_scaling
from torchtune_qwenvl.training.peft_export import save_adapter_folder
from torchtune_qwenvl.training.precision import compute_dtype
from torchtune_qwenvl.training.weight_plan import plan_weights


def export(
    model: VisionLanguageModel,
    world: World,
    source: str | Path,
    output_dir: Path,
    dtype: str | None = None,
    merge_adapter: bool = True,
) -> list[Path]:
    """Write `model/`, `adapter/` or both, and read them back; all ranks call, rank 0 writes. Returns the
    folders.

    Args:
        model: trained, sharded or whole.
        world: who shares it.
        source: the checkpoint folder it came from; files beside the weights are copied from there.
        output_dir: where the folders go.
        dtype: "bf16" or "fp32" for all weights; None keeps those of `source`.
        merge_adapter: with LoRA, write `model/` too.

    Raises:
        ValueError: not enough disk, or what was written cannot be read back.
    """
    scaling = lora_scaling(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    full = [name for name, p in model.named_parameters() if p.requires_grad and not is_adapter(name)]
    written: list[Path] = []
    with GatheredState(model, world) as state:
        if world.is_main and scaling:
            written.append(output_dir / "adapter")
            save_adapter_folder(state, written[-1], source, scaling=scaling, full=full)
        if world.is_main and (merge_adapter or not scaling):
            written.append(output_dir / "model")
            target = compute_dtype(dtype) if dtype else None
            save_folder(state, written[-1], source, scaling=scaling, dtype=target)
            with CheckpointFolder(written[-1]) as files:
                plan_weights(files, get_family(files.config).weights, shapes)
    world.barrier()
    return written
