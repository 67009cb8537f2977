"""Check that the model which a config builds is the one that the checkpoint holds.

Shapes alone are not enough. With another rotary base, norm epsilon or set of windowed layers all weights fit,
but the model is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.json_files import CONFIG
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.models.build import RESIZED_FROM, architecture
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


def check_architecture(model: VisionLanguageModel, files: CheckpointFolder) -> None:
    """Compare the config that `model` was built from with the folder's config.json.

    Raises:
        ValueError: the family, a size or a constant differs; all differences are named.
    """
    path, family = files.path / CONFIG, get_family(files.config)
    if get_family(model.config).slots is not family.slots:
        raise ValueError(
            f"{path} is of a {family.model_type} model, but the builder made a {model.config['model_type']}: "
            "set model._component_ to the checkpoint's builder, or checkpoint_dir to the builder's checkpoint"
        )
    built, stored = architecture(family.slots, model.config), architecture(family.slots, files.config)
    built["decoder's vocab_size"] = model.config.get(RESIZED_FROM, built["decoder's vocab_size"])
    if different := [name for name in stored if stored[name] != built[name]]:
        named = ", ".join(f"{name} is {stored[name]} (built with {built[name]})" for name in different)
        raise ValueError(
            f"{path}: the model was built for another checkpoint: {named}. Set model._component_ to the "
            f"builder of the checkpoint's size, or to {_dotted(family.from_config)} with model.config: "
            f"{files.path}; give what trains and LoRA's arguments again, since another component "
            "keeps none of the old one's"
        )


def _dotted(builder: Callable[..., object]) -> str:
    """The dotted path for a config: a builder is imported from its family's package."""
    return f"{builder.__module__.rpartition('.')[0]}.{builder.__name__}"
