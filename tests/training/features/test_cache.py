"""A cached encoder gives the loss of the encoder itself, to the last bit, and is not run again."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torchtune.data import Message

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.data import vision_chat_dataset
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.modules.batch import on_device
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer
from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.training.features.cache import FeatureCache
from torchtune_qwenvl.training.step.batches import collate_for
from torchtune_qwenvl.training.step.precision import autocast
from torchtune_qwenvl.transforms.images.decode import OpenedImage
from torchtune_qwenvl.transforms.videos.open_video import OpenedVideo

FROZEN: dict[str, Any] = {"encoder_trainable": "frozen", "fusion_trainable": "frozen"}
CPU = torch.device("cpu")
MEDIA = (
    ("<image>", {"image": "a.png"}),
    ("<video><image>", {"video": "clip.mp4", "image": "b.jpg"}),
    ("", {}),
)


class Side:
    """A model, its transform and its batches, with a cache or without."""

    def __init__(
        self,
        folder: Path,
        kept: Path | None,
        dtype: torch.dtype,
        order: tuple[int, ...] = (0, 1, 2),
        pixels: str = "uint8",
        model: dict[str, Any] | None = None,
    ) -> None:
        overrides = [f"feature_cache_dir={kept}", f"cache_features={kept is not None}".lower()]
        self.cfg: DictConfig = resolve("any/model_lora", [*overrides, f"checkpoint_dir={folder}"])
        self.model = load_model(folder, torch.float32, **{**FROZEN, **(model or {})})
        transform = load_transform(folder, dtype=pixels, max_pixels=100_000)
        self.autocast = partial(autocast, CPU, dtype)
        self.cache = FeatureCache(self.cfg, transform, World(CPU), self.autocast)
        self.dataset: Any = vision_chat_dataset(self.cache.transform, source=records(folder, order))
        self.pad_id = transform.pad_id

    def open(self) -> "Side":
        self.cache.whole(self.model)
        self.cache.open(self.model, self.dataset)
        return self

    def batch(self, *numbers: int, padding_free: bool = False) -> dict[str, Any]:
        samples = [self.dataset[number] for number in numbers]
        inputs = collate_for(self.model, padding_free)(samples, padding_idx=self.pad_id, ignore_idx=-100)
        return on_device(self.cache.complete(inputs), CPU)

    def loss(self, *numbers: int, padding_free: bool = False) -> float:
        with self.autocast(), torch.no_grad():
            return self.model(**self.batch(*numbers, padding_free=padding_free))[0].item()


def records(folder: Path, order) -> str:
    rows = []
    for number in order:
        marks, media = MEDIA[number]
        turns = [("human", f"{marks}what?"), ("gpt", "abc"[number] * 3)]
        rows.append({"conversations": [{"from": who, "value": text} for who, text in turns], **media})
    path = folder / f"{''.join(map(str, order))}.json"
    path.write_text(json.dumps(rows))
    return str(path)


def counting(function: Callable, name: str, counts: Counter) -> Callable:
    def counted(*arguments, **options):
        counts[name] += 1
        return function(*arguments, **options)

    return counted


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """How often an encoder ran, and how often an image or a video was decoded."""
    counts: Counter = Counter()
    for owner, name in ((VisionTransformer, "features"), (OpenedImage, "decode"), (OpenedVideo, "frames")):
        monkeypatch.setattr(owner, name, counting(getattr(owner, name), name, counts))
    yield counts


def test_every_family(folder: Path, tmp_path: Path, done: Counter) -> None:
    plain = Side(folder, None, torch.bfloat16)
    cold = Side(folder, tmp_path / "kept", torch.bfloat16).open()
    expected = {rows: plain.loss(*rows) for rows in ((0,), (2,))}
    assert {rows: cold.loss(*rows) for rows in expected} == expected
    together = cold.loss(0, 1, 2), cold.loss(0, 1, 2, padding_free=True)
    assert together[0] == pytest.approx(plain.loss(0, 1, 2), rel=3e-2)
    warm = Side(folder, tmp_path / "kept", torch.bfloat16, order=(1, 0, 2)).open()
    done.clear()
    assert {rows: warm.loss(1 if rows == (0,) else 2) for rows in expected} == expected
    assert warm.loss(1, 0, 2) == pytest.approx(together[0], rel=1e-6)
    assert (cold.loss(0, 1, 2), cold.loss(0, 1, 2, padding_free=True)) == together
    assert not done
    plain.loss(0)
    assert done == {"features": 1, "decode": 1}


def test_features_do_not_depend_on_what_else_is_in_the_batch(qwen3_vl: Path, tmp_path: Path) -> None:
    one, other = (Side(qwen3_vl, tmp_path / name, torch.float32).open() for name in "ab")
    together = one.batch(0, 1)["encoder_input"]["vision"]["features"]
    alone = [other.batch(n)["encoder_input"]["vision"]["features"] for n in (1, 0)]
    assert torch.equal(together, torch.cat(alone[::-1]))
    assert one.cache.encoded == other.cache.encoded == 3
    assert torch.equal(one.batch(0, 1)["encoder_input"]["vision"]["features"], together)
    assert one.cache.known == 3 and one.cache.encoded == 3


def test_a_medium_that_is_twice_in_a_batch_is_encoded_once(
    qwen3_vl: Path, tmp_path: Path, done: Counter
) -> None:
    side = Side(qwen3_vl, tmp_path, torch.float32, order=(0, 0, 1)).open()
    done.clear()
    twice = side.batch(0, 1)["encoder_input"]["vision"]["features"]
    assert done["features"] == 1 and torch.equal(*twice.chunk(2))


def test_rounding_to_bf16_is_all_that_changes(qwen3_vl: Path, tmp_path: Path) -> None:
    plain, side = Side(qwen3_vl, None, torch.float32), Side(qwen3_vl, tmp_path, torch.float32).open()
    vision = plain.batch(1)["encoder_input"]["vision"]
    with torch.no_grad():
        found = plain.model.vision_encoder(
            vision["pixel_values"], vision["grid_thw"], return_deepstack=True, plan=vision["plan"]
        )
    got = side.batch(1)["encoder_input"]["vision"]["features"]
    assert got.dtype == torch.bfloat16 and got.shape[1] == 1 + len(found.deepstack) > 1
    expected = torch.stack([found.tokens, *found.deepstack], dim=1)
    assert (got.float() - expected).abs().max() <= expected.abs().max() * 2**-8


@pytest.mark.parametrize("changed", ["weight", "norm", "dtype", "pixels"])
def test_another_encoder_has_other_features(qwen3_vl: Path, tmp_path: Path, changed: str) -> None:
    """Stale features are not used: of other weights, another dtype, other pixels."""
    Side(qwen3_vl, tmp_path, torch.float32).open().batch(0, 1)
    pixels = "float32" if changed == "pixels" else "uint8"
    # The dtype is not in the config here: the features of the probe alone show it.
    computed = torch.bfloat16 if changed == "dtype" else torch.float32
    side = Side(qwen3_vl, tmp_path, computed, pixels=pixels)
    encoder = side.model.vision_encoder
    with torch.no_grad():
        if changed == "weight":
            next(iter(encoder.deepstack_mergers.parameters())).flatten()[3] += 0.5
        elif changed == "norm":
            encoder.final_norm.weight[0] *= 1.01
    side.open().batch(0, 1)
    assert side.cache.known == 0 and side.cache.encoded == 3


def test_a_file_that_was_replaced_meanwhile_is_not_kept(
    qwen3_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = Side(qwen3_vl, tmp_path / "kept", torch.float32).open()
    real = OpenedImage.decode

    def decode(self: OpenedImage) -> torch.Tensor:
        (qwen3_vl / "a.png").touch()
        return real(self)

    monkeypatch.setattr(OpenedImage, "decode", decode)
    side.batch(0)
    monkeypatch.undo()
    side.batch(0)
    side.batch(0)
    assert (side.cache.encoded, side.cache.known) == (2, 1)


def test_features_that_are_no_numbers_are_not_kept(qwen3_vl: Path, tmp_path: Path) -> None:
    side = Side(qwen3_vl, tmp_path, torch.float32).open()
    with torch.no_grad():
        next(side.model.vision_encoder.merger.parameters()).fill_(float("nan"))
    side.batch(0)
    side.batch(0)
    assert (side.cache.encoded, side.cache.known) == (2, 0)


@pytest.mark.parametrize(
    "model",
    [
        {"encoder_trainable": "full"},
        {"fusion_trainable": "full"},
        {"encoder_trainable": "lora", "lora_attn_modules": ["q_proj"], "lora_rank": 2, "lora_alpha": 4},
    ],
    ids=["encoder", "fusion", "lora"],
)
def test_what_trains_is_refused(qwen3_vl: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"vision_encoder\..* is not frozen"):
        Side(qwen3_vl, tmp_path, torch.float32, model=model).open()


def test_adapters_that_are_frozen_later_are_refused_too(qwen3_vl: Path, tmp_path: Path) -> None:
    lora = {"encoder_trainable": "lora", "lora_attn_modules": ["q_proj"], "lora_rank": 2, "lora_alpha": 4}
    side = Side(qwen3_vl, tmp_path, torch.float32, model=lora)
    side.model.requires_grad_(False)
    with pytest.raises(ValueError, match="there is LoRA on it"):
        side.open()


def test_random_changes_of_pixels_are_refused(
    qwen3_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = Side(qwen3_vl, tmp_path, torch.float32)
    transform = type(side.cache.transform.image_transform)
    real = transform.patches

    def flipped(self, image):
        patches, grid = real(self, image)
        return (patches.flip(1) if torch.rand(()) < 0.5 else patches), grid

    with monkeypatch.context() as patch:
        patch.setattr(transform, "patches", flipped)
        torch.manual_seed(0)
        with pytest.raises(ValueError, match="changed at random"):
            side.open()
    side.dataset = Noisy(side.cache.transform)
    with pytest.raises(ValueError, match="other pixels each time"):
        side.open()


class Noisy(torch.utils.data.Dataset):
    """A dataset that draws a part of each picture."""

    def __init__(self, transform) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> dict[str, Any]:
        picture = torch.randint(0, 256, (3, 56, 84), dtype=torch.uint8)
        content = [{"type": "image", "content": picture}, {"type": "text", "content": "what?"}]
        return self.transform({"messages": [Message("user", content), Message("assistant", "a")]})


def test_another_transform_is_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    cfg = resolve("any/model_lora", ["cache_features=true", f"checkpoint_dir={qwen3_vl}"])
    with pytest.raises(ValueError, match="expected a transform of this package, got dict"):
        FeatureCache(cfg, {}, World(CPU), partial(autocast, CPU, torch.float32))
