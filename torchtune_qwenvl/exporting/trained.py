"""A trained model in pieces: a `step_N/` folder or an adapter, and the checkpoint that it began from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchtune.config import instantiate

from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, adapter_state
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.loading import load_model, load_weights
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.modules.adapters.lora import is_adapter
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.resume.meta import check_files, rank_file, read_meta


@dataclass(frozen=True)
class Trained:
    """The pieces.

    Attributes:
        source: the checkpoint folder that training began from.
        state: the trained parameters by our names; read lazily.
        skeleton: the model on the meta device, including adapters.
        build: the model with the source's weights in fp32, on a device.
    """

    source: Path
    state: Mapping[str, Tensor]
    skeleton: VisionLanguageModel
    build: Callable[[str], VisionLanguageModel]

    @torch.no_grad()
    def model(self, device: str) -> VisionLanguageModel:
        """The trained model in fp32, in eval mode."""
        model = self.build(device)
        parameters = dict(model.named_parameters())
        for name in self.state:
            parameters[name].copy_(self.state[name])
        return model.eval()


class StepState(Mapping[str, Tensor]):
    """`{our name: whole tensor}` of a `step_N/` folder; a tensor is read when it is accessed.

    Raises:
        ValueError: a file is missing, or is not the one that was written.
    """

    def __init__(self, folder: Path) -> None:
        meta = read_meta(folder)
        check_files(folder, meta)
        self._shards = [
            torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)["parameters"]
            for name in map(rank_file, range(meta.world_size))
        ]

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor: shards are cut along the first axis, in the order of the ranks."""
        parts = [shard[name] for shard in self._shards]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards[0])

    def __len__(self) -> int:
        return len(self._shards[0])


def from_step(folder: Path, cfg: DictConfig) -> Trained:
    """What a run has saved in `step_N/`.

    Args:
        folder: the step's folder, written by any number of processes.
        cfg: the run's config; a quantised base is taken in full precision.

    Raises:
        ValueError: the folder holds other parameters than those which the config's model trains.
    """
    exact = {"quantize_base": False} if "quantize_base" in cfg.model else {}

    def on_meta(files: CheckpointFolder) -> VisionLanguageModel:
        with torch.device("meta"):
            return instantiate(cfg.model, **files.model_arguments(), **exact).float()

    def build(device: str) -> VisionLanguageModel:
        with CheckpointFolder(cfg.checkpoint_dir) as files:
            model = on_meta(files)
            load_weights(model, files, torch.device(device))
        return model

    with CheckpointFolder(cfg.checkpoint_dir) as files:
        skeleton = on_meta(files)
    state = StepState(folder)
    trains = {name for name, parameter in skeleton.named_parameters() if parameter.requires_grad}
    if different := sorted(trains ^ set(state)):
        raise ValueError(
            f"{folder} holds other trained parameters than the config's model; {len(different)} differ, "
            f"'{different[0]}' first. Name the config that the run began with."
        )
    return Trained(Path(cfg.checkpoint_dir), state, skeleton, build)


def from_adapter(folder: Path, source: Path) -> Trained:
    """What an adapter folder holds, with the checkpoint that it belongs to."""
    arguments = adapter_arguments(folder, source)
    with CheckpointFolder(source) as files, torch.device("meta"):
        family = get_family(files.config)
        skeleton = family.from_config(files.config, **{**files.image_statistics(), **arguments})
    state = adapter_state(folder, skeleton)
    trained = {name: p for name, p in skeleton.named_parameters() if is_adapter(name)}
    # Of linears that the folder does not adapt: an adapter that adds nothing.
    state |= {name: torch.zeros(p.shape) for name, p in trained.items() if name not in state}
    return Trained(
        source, state, skeleton, lambda device: load_model(source, torch.float32, device, **arguments)
    )
