"""Fine-tune open vision-language models with torchtune.

    model = load_model(folder)                         any HF checkpoint folder of a known family
    transform = load_transform(folder)                 messages -> tokens, positions, patches
    save_model(model, out_folder, source=folder)       a folder that transformers loads
    encoder = load_vision_encoder(folder)              the vision half alone: pixels, grids -> visual tokens

`import torchtune_qwenvl` alone imports neither torch nor torchtune: a name imports its module at first
use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torchtune_qwenvl.quiet import hide_torchao_kernels_message

if TYPE_CHECKING:
    from torchtune_qwenvl.checkpoints.loading import load_model
    from torchtune_qwenvl.checkpoints.vision_encoder import load_vision_encoder
    from torchtune_qwenvl.checkpoints.writing import save_model
    from torchtune_qwenvl.models import load_transform

hide_torchao_kernels_message()  # before anything below imports torchtune, and with it torchao

__all__ = ["load_model", "load_transform", "load_vision_encoder", "save_model"]

_MODULES = {
    "load_model": "torchtune_qwenvl.checkpoints.loading",
    "load_transform": "torchtune_qwenvl.models",
    "load_vision_encoder": "torchtune_qwenvl.checkpoints.vision_encoder",
    "save_model": "torchtune_qwenvl.checkpoints.writing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
