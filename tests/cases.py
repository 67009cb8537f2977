"""Model inputs for the tests, made without our transform: for our model and, the same, for transformers'."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tiny_families import FAMILIES
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

Grid = tuple[int, int, int]


def renamed(hf: nn.Module, named: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights (or gradients) of transformers' model under our names and in our shapes."""
    table = get_family(hf.config.to_dict()).weights
    for name, tensor in named.items():
        ours = table.ours(name)
        tensor = tensor.flatten(1) if tensor.ndim > 3 else tensor
        yield from zip(ours, tensor.chunk(len(ours)), strict=True)


def constants(hf: nn.Module) -> dict[str, Tensor]:
    """What files hold beside parameters: the biases of routers."""
    return {name: b for name, b in hf.named_buffers() if name.endswith("e_score_correction_bias")}


def ours_like(hf: nn.Module, **arguments: Any) -> VisionLanguageModel:
    """Our model with the weights of transformers'; adapters keep their own."""
    config = hf.config.to_dict()
    model = get_family(config).from_config(config, **arguments)
    state = {**dict(hf.named_parameters()), **constants(hf)}
    weights = dict(renamed(hf, {name: tensor.detach().clone() for name, tensor in state.items()}))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("lora" in name or "magnitude" in name for name in missing)
    for module in model.modules():
        if hasattr(module, "initialize_dora_magnitude"):
            module.initialize_dora_magnitude()
    return model.eval()


class Exactly(TorchFunctionMode):
    """Within it, what casts to fp32 casts to fp64: transformers' norms, rotary tables and interpolations too.

    `exact_like(hf)` run within is the true fp64 run that the bounds are meant for; `model.double()` is not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def widen(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        named = {name: widen(value) for name, value in (kwargs or {}).items()}
        return func(*map(widen, args), **named)


def exact_like(hf: nn.Module) -> nn.Module:
    """transformers' model in fp64, to be run within `Exactly()`."""
    exact = copy.deepcopy(hf).double()
    exact.set_experts_implementation("eager")  # torch's grouped product has no fp64
    return exact


def widened(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of an exact model."""
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def relative(ours: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm."""
    return ((ours - reference).norm() / reference.norm()).item()


def of_scale(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


class Case:
    """Prompts of text pieces (numbers of tokens) and images (grids in patches), in any order.

    `Case(hf, [3, (1, 4, 6), 5])` is one row: 3 text tokens, an image between its two marks, 5 text tokens.
    The last `labelled` text tokens of each row are labelled.
    """

    def __init__(
        self, hf: nn.Module, *rows: Sequence[int | Grid], labelled: int = 4, seed: int = 0, raw: bool = False
    ) -> None:
        self.hf, self.labelled = hf, labelled
        self._generator = torch.Generator().manual_seed(seed)
        self.samples = [self._sample(row, raw) for row in rows]

    def _sample(self, pieces: Sequence[int | Grid], raw: bool) -> dict[str, Any]:
        config, tokens, images, grids = self.hf.config, [], [], []
        for piece in pieces:
            if isinstance(piece, int):
                tokens += torch.randint(0, 250, (piece,), generator=self._generator).tolist()
                continue
            t, h, w = piece
            merged = t * h * w // config.vision_config.spatial_merge_size**2
            placeholders = [config.image_token_id] * merged
            before, after = (getattr(config, entry) for entry in FAMILIES[config.model_type].marks)
            tokens += [before, *placeholders, after]
            images.append(self._pixels(t * h * w, raw))
            grids.append(piece)
        grid_thw = torch.tensor(grids, dtype=torch.int64).view(-1, 3)
        return {
            "tokens": tokens,
            "mask": [i < len(tokens) - self.labelled for i in range(len(tokens))],
            "input_pos": self._positions(tokens, grid_thw),
            "encoder_input": {"vision": {"images": images, "grid_thw": grid_thw}},
        }

    def _pixels(self, n: int, raw: bool) -> Tensor:
        still = 3 * self.hf.config.vision_config.patch_size**2
        if raw:
            return torch.randint(0, 256, (n, still), generator=self._generator).to(torch.uint8)
        return torch.randn(n, 2 * still, generator=self._generator)

    def _positions(self, tokens: list[int], grids: Tensor) -> Tensor:
        ids = torch.tensor([tokens])
        if not len(grids):
            return torch.arange(len(tokens))[:, None].expand(-1, 3)
        kinds = (ids == self.hf.config.image_token_id).int()
        positions, _ = self.hf.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grids)
        return positions[:, 0].T

    def reference_inputs(self) -> dict[str, Any]:
        """What transformers' model takes, right-padded, `mm_token_type_ids` included."""
        longest = max(len(sample["tokens"]) for sample in self.samples)
        pad = [longest - len(sample["tokens"]) for sample in self.samples]
        tokens = torch.tensor([s["tokens"] + [0] * n for s, n in zip(self.samples, pad, strict=True)])
        labels = [
            [-100 if masked or i == 0 else s["tokens"][i] for i, masked in enumerate(s["mask"])] + [-100] * n
            for s, n in zip(self.samples, pad, strict=True)
        ]
        real = [[1] * (longest - n) + [0] * n for n in pad]
        inputs = {
            "input_ids": tokens,
            "attention_mask": torch.tensor(real),
            "mm_token_type_ids": (tokens == self.hf.config.image_token_id).int(),
            "labels": torch.tensor(labels),
        }
        visions = [s["encoder_input"]["vision"] for s in self.samples]
        if images := [image for vision in visions for image in vision["images"]]:
            inputs["pixel_values"] = torch.cat(images)
            inputs["image_grid_thw"] = torch.cat([vision["grid_thw"] for vision in visions])
        return inputs
