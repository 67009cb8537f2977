"""Folders as each release of transformers writes them: model and transform are those of the published one.

The differences are transcribed from what the releases wrote for these tiny models.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torchtune.data import Message

from torchtune_qwenvl import load_model, load_transform, save_model

Json = dict[str, Any]


def read(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def vision_differs_from_its_class(config: Json) -> None:
    """4.45 to 4.49: `vision_config` has only what differs from the class's defaults."""
    kept = {
        "qwen2_vl": ("depth", "embed_dim", "hidden_size", "mlp_ratio", "num_heads"),
        "qwen2_5_vl": (
            *("depth", "fullatt_block_indexes", "hidden_size", "intermediate_size", "num_heads"),
            *("out_hidden_size", "tokens_per_second"),
        ),
    }[config["model_type"]]
    vision = {name: config["vision_config"][name] for name in kept}
    config["vision_config"] = {**vision, "in_chans": 3, "model_type": config["model_type"]}
    config["rope_scaling"] |= {"rope_type": "default", "type": "default"}


def text_twice(config: Json) -> None:
    """4.52 to 4.56: text entries at the top and in `text_config`, where alone a tied head is noted."""
    config["rope_scaling"] |= {"rope_type": "default", "type": "default"}
    tied = config.pop("tie_word_embeddings")
    apart = ("vision_config", "architectures", "transformers_version", "model_type")
    text = {name: value for name, value in config.items() if name not in apart}
    text |= {"model_type": f"{config['model_type']}_text", "image_token_id": None, "video_token_id": None}
    config["text_config"] = {**copy.deepcopy(text), "tie_word_embeddings": tied}
    if not tied:
        config["tie_word_embeddings"] = False
    config["vision_config"] |= {"in_channels": 3, "model_type": config["model_type"]}


def dtype_renamed(config: Json) -> None:
    """4.56 on: `dtype` instead of `torch_dtype`."""
    for part in (config, config.get("text_config", {}), config["vision_config"]):
        if "torch_dtype" in part:
            part["dtype"] = part.pop("torch_dtype")


def sizes_in(*names: str) -> Callable[[Json], None]:
    """Limits of pixels at the top and in `size`, where they have these names."""

    def change(image: Json) -> None:
        size = image.get("size") or {}
        least = image.get("min_pixels", size.get("shortest_edge"))
        most = image.get("max_pixels", size.get("longest_edge"))
        image["size"] = dict(zip(names, (least, most), strict=True))
        image |= {"do_resize": True, "resample": 3, "rescale_factor": 1 / 255, "do_convert_rgb": True}

    return change


def template_in_json(folder: Path) -> None:
    """As published: chat_template.json."""


def template_in_tokenizer(folder: Path) -> None:
    """tokenizer_config.json has it, as those of language models."""
    template = read(folder / "chat_template.json")["chat_template"]
    (folder / "chat_template.json").unlink()
    config = read(folder / "tokenizer_config.json")
    write(folder / "tokenizer_config.json", {**config, "chat_template": template})


def template_in_jinja(folder: Path) -> None:
    """4.52 on: chat_template.jinja."""
    (folder / "chat_template.jinja").write_text(read(folder / "chat_template.json")["chat_template"])
    (folder / "chat_template.json").unlink()


def video_file(folder: Path) -> None:
    """4.52 on: video_preprocessor_config.json, for families that had none before."""
    if not (folder / "video_preprocessor_config.json").is_file():
        image = read(folder / "preprocessor_config.json")
        none = dict.fromkeys(("crop_size", "device", "do_center_crop", "fps", "num_frames", "size_divisor"))
        video = {**image, **none, "video_processor_type": "Qwen2VLVideoProcessor"}
        write(folder / "video_preprocessor_config.json", video)


def names_of_modules(folder: Path) -> None:
    """`model.visual`, `model.language_model`: what modules are called since 4.52."""
    weights = load_file(folder / "model.safetensors")
    prefixes = {"visual.": "model.visual.", "model.": "model.language_model."}
    renamed = {}
    for name, tensor in weights.items():
        old = next((p for p in prefixes if name.startswith(p)), "")
        known = name.startswith(("model.visual.", "model.language_model."))
        renamed[name if known or not old else prefixes[old] + name.removeprefix(old)] = tensor
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


FLAT = ("qwen2_vl", "qwen2_5_vl")
FAST = sizes_in("shortest_edge", "longest_edge")
# release -> (families it has, changes of config.json, of preprocessor_config.json, of the folder)
RELEASES = {
    "4.45": (
        FLAT[:1],
        [vision_differs_from_its_class],
        sizes_in("min_pixels", "max_pixels"),
        [template_in_json],
    ),
    "4.49": (FLAT, [vision_differs_from_its_class], FAST, [template_in_json]),
    "4.49 by a tokenizer": (FLAT, [vision_differs_from_its_class], FAST, [template_in_tokenizer]),
    "4.51": (FLAT, [], FAST, [template_in_json]),
    "4.52": (FLAT, [text_twice], FAST, [video_file, template_in_jinja]),
    "4.52, names of modules": (FLAT, [text_twice], FAST, [video_file, template_in_jinja, names_of_modules]),
    "4.57": (
        tuple(tiny.FAMILIES),
        [lambda config: text_twice(config) if config["model_type"] in FLAT else None, dtype_renamed],
        FAST,
        [video_file, template_in_jinja],
    ),
}
CASES = [(release, family) for release, (families, *_) in RELEASES.items() for family in families]


def sample(folder: Path) -> tuple[list[int], torch.Tensor]:
    picture = {"type": "image", "content": tiny.photo(60, 90)}
    messages = [
        Message("user", [picture, {"type": "text", "content": "in the hand?"}]),
        Message("assistant", "It is."),
    ]
    made = load_transform(folder)({"messages": messages})
    return made["tokens"], made["encoder_input"]["vision"]["images"][0]


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("release", "family"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_releases_folder_is_the_published_one(tmp_path, release, family, tie):
    _, of_config, of_image, of_folder = RELEASES[release]
    published = tiny.save_tiny_folder(tmp_path / "published", family=family, tie=tie)
    folder = tiny.save_tiny_folder(tmp_path / "release", family=family, tie=tie)
    config, image = read(folder / "config.json"), read(folder / "preprocessor_config.json")
    for change in of_config:
        change(config)
    of_image(image)
    write(folder / "config.json", config)
    write(folder / "preprocessor_config.json", image)
    for step in of_folder:
        step(folder)
    ours, expected = (dict(load_model(one).named_parameters()) for one in (folder, published))
    assert ours.keys() == expected.keys() and all(torch.equal(ours[n], expected[n]) for n in ours)
    (tokens, pixels), (same_tokens, same_pixels) = sample(folder), sample(published)
    assert tokens == same_tokens and torch.equal(pixels, same_pixels)
    out = save_model(load_model(folder), tmp_path / "out", source=folder)
    assert all((out / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())


FIELD = {"tiny": (64, 100, 4, 2), "published": (1280, 3420, 16, 2)}


@pytest.mark.parametrize("name", FIELD)
def test_vision_configs_that_4_49_wrote(name):
    """The vision part of two files: what is missing has the value of the class in every release since."""
    from torchtune_qwenvl.models.qwen2_5_vl._hf_config import normalise_vision

    width, inner, heads, step = FIELD[name]
    written = {"depth": 3, "fullatt_block_indexes": [1], "hidden_size": width, "in_chans": 3}
    written |= {"out_hidden_size": 64, "tokens_per_second": step}
    written |= {"intermediate_size": inner, "num_heads": heads} if name == "tiny" else {}
    found = normalise_vision({**written, "model_type": "qwen2_5_vl"})
    assert (found["hidden_size"], found["intermediate_size"], found["num_heads"]) == (width, inner, heads)
    assert (found["window_size"], found["patch_size"], found["tokens_per_second"]) == (112, 14, step)
