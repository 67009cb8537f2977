"""Make model inputs for the tests without our transform, in the same way for our model and transformers'."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from chats import Block, positions_by_walk
from tiny_families import FAMILIES
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.modules.batch import map_tensors
from torchtune_qwenvl.modules.vision.learned_positions import bilinear
from torchtune_qwenvl.modules.vision.plan import VisionPlan, VisionPlanner
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

Grid = tuple[int, int, int]


class Video(NamedTuple):
    """A video's grid in patches, and the seconds from one temporal patch to the next."""

    t: int
    h: int
    w: int
    seconds: float = 1.0


Piece = int | Grid | Video


def renamed(hf: nn.Module, named: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights (or gradients) of transformers' model with our names and shapes."""
    table = get_family(hf.config.to_dict()).weights
    for name, tensor in named.items():
        ours = table.ours(name)
        tensor = tensor.flatten(1) if tensor.ndim > 3 or "conv1d" in name else tensor
        yield from zip(ours, _parts(hf, name, tensor, len(ours)), strict=True)


def _parts(hf: nn.Module, name: str, tensor: Tensor, n: int) -> Sequence[Tensor]:
    """Our parts of a tensor; in delta nets values may have more rows than queries and keys."""
    if not name.endswith("linear_attn.in_proj_qkv.weight"):
        return tensor.chunk(n)
    text = hf.config.text_config
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    return tensor.split([keys, keys, text.linear_num_value_heads * text.linear_value_head_dim])


def constants(hf: nn.Module) -> dict[str, Tensor]:
    """Tensors in the files that are no parameters: the biases of routers."""
    return {name: b for name, b in hf.named_buffers() if name.endswith("e_score_correction_bias")}


def ours_like(hf: nn.Module, **arguments: Any) -> VisionLanguageModel:
    """Our model with the weights of transformers' model; adapters keep their own weights."""
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
    """In this context, casts to fp32 become casts to fp64, also in transformers' norms and rotary tables.

    Only with it is `exact_like(hf)` computed in fp64 throughout; `model.double()` alone still computes in
    fp32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def widen(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        named = {name: widen(value) for name, value in (kwargs or {}).items()}
        return func(*map(widen, args), **named)


# Families that amplify rounding: what they compute is compared in fp64.
DELTA_NETS = ("qwen3_5", "qwen3_5_moe")


@contextmanager
def exactly() -> Iterator[None]:
    """`Exactly` for our models, which keep matrices of interpolated positions between calls.

    A plan holds these matrices as 32 bits each, so the encoder gets plans without them and makes its own.
    """
    plan = VisionPlanner.plan

    def without_matrices(planner: VisionPlanner, grids: Any, device: Any, packed: Any = None) -> VisionPlan:
        return replace(plan(replace(planner, table=None), grids, device), stretched=None)

    bilinear.cache_clear()
    with Exactly(), patch.object(VisionPlanner, "plan", without_matrices):
        yield
    bilinear.cache_clear()


@contextmanager
def as_wide_as(ours: VisionLanguageModel, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The batch for our model in fp32, or in fp64 after `.double()`; then all is computed in fp64."""
    if ours.decoder.norm.scale.dtype == torch.float64:
        with exactly():
            yield widened(batch)
    else:
        yield batch


def exact_like(hf: nn.Module) -> nn.Module:
    """transformers' model in fp64, to be run inside `Exactly()`."""
    exact = copy.deepcopy(hf).double()
    exact.set_experts_implementation("eager")  # torch's grouped product has no fp64
    return exact


def widened(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs in fp64."""
    return map_tensors(inputs, lambda x: x.double() if x.is_floating_point() else x)


def relative(ours: Tensor, reference: Tensor) -> float:
    """Norm of the difference, divided by the norm of the reference."""
    return ((ours - reference).norm() / reference.norm()).item()


def of_scale(ours: Tensor, reference: Tensor) -> float:
    """Largest difference, divided by the largest value of the reference."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


class Case:
    """Prompts of text pieces (numbers of tokens), images (grids in patches) and videos, in any order.

    `Case(hf, [3, (1, 4, 6), 5])` is one row: 3 text tokens, an image between its two marks, 5 text tokens.
    A video is written as its family writes it. The last `labelled` text tokens of each row are labelled.
    """

    def __init__(
        self, hf: nn.Module, *rows: Sequence[Piece], labelled: int = 4, seed: int = 0, raw: bool = False
    ) -> None:
        self.hf, self.labelled, self.raw = hf, labelled, raw
        self.family = FAMILIES[hf.config.model_type]
        self.rows = rows
        self._generator = torch.Generator().manual_seed(seed)
        self.samples = [self._sample(row) for row in rows]

    def only(self, row: int) -> "Case":
        """The same case with one of its rows."""
        one = copy.copy(self)
        one.rows, one.samples = self.rows[row : row + 1], [copy.copy(self.samples[row])]
        return one

    def _sample(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        tokens, images = [], []
        media = [piece for piece in pieces if not isinstance(piece, int)]
        for piece in pieces:
            tokens += self._text(piece) if isinstance(piece, int) else self._written(piece)
            if not isinstance(piece, int):
                images.append(self._pixels(*piece[:3], frames=2 if isinstance(piece, Video) else 1))
        grid_thw = torch.tensor([piece[:3] for piece in media], dtype=torch.int64).view(-1, 3)
        return {
            "tokens": tokens,
            "mask": [i < len(tokens) - self.labelled for i in range(len(tokens))],
            "input_pos": self._positions(tokens, media),
            "encoder_input": {"vision": {"images": images, "grid_thw": grid_thw}},
        }

    def _text(self, n: int) -> list[int]:
        return torch.randint(0, 250, (n,), generator=self._generator).tolist()

    def _written(self, piece: Grid | Video) -> list[int]:
        """Tokens of an image or a video; in some families each temporal patch has marks of its own."""
        config = self.hf.config
        t, h, w = piece[:3]
        n = h * w // config.vision_config.spatial_merge_size**2
        before, after = (getattr(config, entry) for entry in self.family.marks)
        if not isinstance(piece, Video):
            return [before, *[config.image_token_id] * (t * n), after]
        start, end = (getattr(config, entry) for entry in self.family.video_marks or self.family.marks)
        pad = getattr(config, self.family.video_pad)
        if not self.family.timestamps:
            return [start, *[pad] * (t * n), end]
        patches = [[before, *[pad] * n, after, *self._text(1)] for _ in range(t)]
        return [start, *self._text(1), *(token for patch in patches for token in patch), end]

    def _pixels(self, t: int, h: int, w: int, frames: int) -> Tensor:
        still = 3 * self.hf.config.vision_config.patch_size**2
        if self.raw:
            shape = (t * h * w, frames * still)
            return torch.randint(0, 256, shape, generator=self._generator).to(torch.uint8)
        return torch.randn(t * h * w, 2 * still, generator=self._generator)

    def _positions(self, tokens: list[int], media: Sequence[Grid | Video]) -> Tensor:
        """Positions from transformers for images, and by the published rule if there is a video."""
        ids, config = torch.tensor([tokens]), self.hf.config
        if not media:
            return torch.arange(len(tokens))[:, None].expand(-1, 3)
        if any(isinstance(piece, Video) for piece in media):
            visual = {config.image_token_id, config.video_token_id}
            blocks = [block for piece in media for block in self._blocks(piece)]
            return torch.tensor(positions_by_walk(tokens, visual, blocks))
        kinds, grids = (ids == config.image_token_id).int(), torch.tensor(media)
        positions, _ = self.hf.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grids)
        return positions[:, 0].T

    def _blocks(self, piece: Grid | Video) -> list[Block]:
        vision, (t, h, w) = self.hf.config.vision_config, piece[:3]
        rows, columns = (side // vision.spatial_merge_size for side in (h, w))
        if isinstance(piece, Video) and self.family.timestamps:
            return [([0], rows, columns)] * t
        step = getattr(vision, "tokens_per_second", None)
        if isinstance(piece, Video) and step is not None:
            return [([int(i * piece.seconds * step) for i in range(t)], rows, columns)]
        return [(list(range(t)), rows, columns)]

    def reference_inputs(self) -> dict[str, Any]:
        """The inputs of transformers' model, right-padded, with `mm_token_type_ids`.

        If a row has a video, position ids are passed too, as transformers' own differ from the published
        ones.
        """
        longest = max(len(sample["tokens"]) for sample in self.samples)
        pad = [longest - len(sample["tokens"]) for sample in self.samples]
        tokens = torch.tensor([s["tokens"] + [0] * n for s, n in zip(self.samples, pad, strict=True)])
        labels = [
            [-100 if masked or i == 0 else s["tokens"][i] for i, masked in enumerate(s["mask"])] + [-100] * n
            for s, n in zip(self.samples, pad, strict=True)
        ]
        real = [[1] * (longest - n) + [0] * n for n in pad]
        config = self.hf.config
        inputs = {
            "input_ids": tokens,
            "attention_mask": torch.tensor(real),
            "mm_token_type_ids": (tokens == config.image_token_id) + 2 * (tokens == config.video_token_id),
            "labels": torch.tensor(labels),
            **self._reference_pixels(),
        }
        if any(isinstance(piece, Video) for row in self.rows for piece in row):
            rows = [torch.as_tensor(sample["input_pos"]) for sample in self.samples]
            inputs["position_ids"] = pad_sequence(rows, batch_first=True).permute(2, 0, 1)
        return inputs

    def _reference_pixels(self) -> dict[str, Tensor]:
        """Images and videos separately. If they share a token, transformers takes only one kind: frames."""
        media = [piece for row in self.rows for piece in row if not isinstance(piece, int)]
        visions = [sample["encoder_input"]["vision"] for sample in self.samples]
        pixels = [one for vision in visions for one in vision["images"]]
        grids = [grid for vision in visions for grid in vision["grid_thw"]]
        kinds = ["videos" if isinstance(piece, Video) else "" for piece in media]
        if self.family.video_pad == "image_token_id" and len(set(kinds)) == 2:
            kinds = [""] * len(kinds)
            grids = [grid.new_tensor([[1, *grid[1:]]] * int(grid[0])) for grid in grids]
        inputs = {}
        for kind, name, grid in (("", "pixel_values", "image"), ("videos", "pixel_values_videos", "video")):
            chosen = [i for i, k in enumerate(kinds) if k == kind]
            if chosen:
                inputs[name] = torch.cat([pixels[i] for i in chosen])
                inputs[f"{grid}_grid_thw"] = torch.cat([grids[i].view(-1, 3) for i in chosen])
        return inputs
