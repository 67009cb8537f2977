"""The vision encoder of a checkpoint, a run or an adapter, as a folder of its own."""

from collections.abc import Sequence
from pathlib import Path

from torchtune_qwenvl.checkpoints.vision_encoder import load_vision_encoder, save_vision_encoder
from torchtune_qwenvl.exporting.source import find_trained
from torchtune_qwenvl.json_files import CONFIG
from torchtune_qwenvl.training.step.precision import DTYPES


def export_encoder(
    folder: Path,
    out: Path,
    *,
    config: str,
    overrides: Sequence[str] = (),
    checkpoint_dir: Path | None = None,
    dtype: str | None = None,
) -> Path:
    """Write the encoder so that transformers' `AutoModel` loads it; LoRA is merged.

    Args:
        folder: a checkpoint, of which the vision shards are enough; or what `find_trained` takes.
        out: where to.
        config: see `find_trained`.
        overrides: see `find_trained`.
        checkpoint_dir: see `find_trained`.
        dtype: "bf16" or "fp32"; None keeps those of the checkpoint.
    """
    cast = None if dtype is None else DTYPES[dtype]
    if (folder / CONFIG).is_file():
        return save_vision_encoder(load_vision_encoder(folder), out, source=folder, dtype=cast)
    trained = find_trained(folder, config, overrides, checkpoint_dir)
    return save_vision_encoder(trained.model("cpu").vision_encoder, out, source=trained.source, dtype=cast)
