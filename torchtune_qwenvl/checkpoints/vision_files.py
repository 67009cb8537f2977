"""A folder as one that holds a vision encoder only: which weights count, and where ours lie among them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from torchtune_qwenvl.checkpoints.folder import WEIGHTS, CheckpointFolder
from torchtune_qwenvl.checkpoints.weight_plan import Stored, StoredWeight, plan_weights
from torchtune_qwenvl.models import ENCODER_SUFFIX, get_family
from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.vit import MODEL_TYPES
from torchtune_qwenvl.models.weight_table import OUR_ENCODER, WeightTable

THEIRS = "model.visual."


@contextmanager
def opened(folder: str | Path) -> Iterator[tuple[CheckpointFolder, Family | None]]:
    """A folder that shows vision weights only, and its family; None for a plain ViT's."""
    with CheckpointFolder(folder, wanted=lambda name: False) as files:
        model_type = str(files.config.get("model_type", ""))
    if model_type in MODEL_TYPES:
        with CheckpointFolder(folder) as files:
            yield files, None
        return
    if model_type.endswith(ENCODER_SUFFIX):
        family = get_family({"model_type": model_type.removesuffix(ENCODER_SUFFIX)})
        family = replace(family, weights=_of_bare_names(family.weights))
    else:
        family = get_family(files.config)
    with CheckpointFolder(folder, wanted=lambda name: _is_vision(name, family.weights)) as files:
        if not any(True for _ in files.entries()):
            raise ValueError(
                f"{folder} holds no vision weights: it is not a checkpoint of a vision-language model"
            )
        yield files, family


def _of_bare_names(table: WeightTable) -> WeightTable:
    """The table for files whose names begin within the encoder: `blocks.0.norm1.weight`."""
    return replace(table, prefixes={"model.visual.": THEIRS, "visual.": THEIRS, "": THEIRS})


def _is_vision(name: str, table: WeightTable) -> bool:
    return table.module_name(name).startswith(THEIRS)


def bare_name(name: str, table: WeightTable) -> str:
    """A weight's original name from the encoder on."""
    return table.module_name(name).removeprefix(THEIRS)


def plan_encoder(files: CheckpointFolder, family: Family | None, encoder: nn.Module) -> dict[str, Stored]:
    """Our parameters, named from the encoder on -> where they lie."""
    shapes = {name: tuple(p.shape) for name, p in encoder.named_parameters()}
    if family is None:
        found = dict(files.entries())
        if found.keys() != shapes.keys() or any(found[n].shape != shape for n, shape in shapes.items()):
            raise ValueError(f"{files.path}: config.json and {WEIGHTS} do not belong together")
        return {n: StoredWeight(files, n, 0, shapes[n], entry.dtype) for n, entry in found.items()}
    within = {OUR_ENCODER + name: shape for name, shape in shapes.items() if not name.startswith("head.")}
    plan = plan_weights(files, family.weights, within)
    return {name.removeprefix(OUR_ENCODER): stored for name, stored in plan.items()}
