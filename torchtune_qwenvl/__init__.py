"""Fine-tune open vision-language models with torchtune.

    model = load_model(folder)                         any HF checkpoint folder of a known family
    transform = load_transform(folder)                 messages -> tokens, positions, patches
    save_model(model, out_folder, source=folder)       a folder that transformers loads
    encoder = load_vision_encoder(folder)              the vision half alone: pixels, grids -> visual tokens

`import torchtune_qwenvl` alone imports neither torch nor torchtune; they do on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torchtune_qwenvl.training.checkpoint import load_model, load_vision_encoder, save_model

__all__ = ["load_model", "load_transform", "load_vision_encoder", "save_model"]


def load_transform(folder: "str | Path", **overrides: Any) -> Any:
    """The transform of a checkpoint folder: tokenizer, chat template and image settings of its files.

    Args:
        folder: HF checkpoint folder of a known family, published or transformers 5 layout.
        **overrides: arguments of the family's transform that replace what the folder says.

    Raises:
        ValueError: an unknown model type, or a file that is missing or contradicts another.
    """
    from torchtune_qwenvl.models import get_family

    return get_family(folder).transform(folder, **overrides)


def __getattr__(name: str) -> Any:
    if name not in ("load_model", "load_vision_encoder", "save_model"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("torchtune_qwenvl.training.checkpoint"), name)
