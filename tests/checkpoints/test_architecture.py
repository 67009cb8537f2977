"""A model built for another checkpoint is refused, also where every weight would fit."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torchtune.config._utils import _get_component_from_path

from torchtune_qwenvl.checkpoints.architecture import check_architecture
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.loading import load_weights
from torchtune_qwenvl.models import FAMILIES, get_family

Change = Callable[[dict[str, Any]], None]


def in_rope(config: dict[str, Any]) -> None:
    config["text_config"]["rope_parameters"]["rope_theta"] *= 2


def in_sections(config: dict[str, Any]) -> None:
    sections = config["text_config"]["rope_parameters"]["mrope_section"]
    sections[0], sections[2] = sections[0] + 1, sections[2] - 1


def in_eps(config: dict[str, Any]) -> None:
    config["text_config"]["rms_norm_eps"] *= 10


def in_token(config: dict[str, Any]) -> None:
    config["image_token_id"] -= 1


def in_windows(config: dict[str, Any]) -> None:
    config["vision_config"]["window_size"] *= 2


def in_deepstack(config: dict[str, Any]) -> None:
    vision = config["vision_config"]
    indexes = vision["deepstack_visual_indexes"]
    indexes[0] = min(set(range(vision["depth"])) - set(indexes))


def in_top_k(config: dict[str, Any]) -> None:
    config["text_config"]["num_experts_per_tok"] -= 1


CHANGES: dict[Change, str] = {
    in_rope: "decoder's rope_theta",
    in_sections: "decoder's mrope_section",
    in_eps: "decoder's norm_eps",
    in_token: "image_token_id",
    in_windows: "vision encoder's window_size",
    in_deepstack: "vision encoder's deepstack",
    in_top_k: "decoder's experts_per_token",
}
OF_SOME = {
    in_windows: ("qwen2_5_vl",),
    in_deepstack: ("qwen3_vl", "qwen3_vl_moe"),
    in_top_k: ("qwen3_vl_moe", "glm4v_moe"),
}


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    return tiny.save_tiny_folder(path, model=tiny.tiny_hf_model(family=request.param))


def test_what_no_shape_shows_is_compared(folder: Path) -> None:
    with CheckpointFolder(folder) as files:
        family = get_family(files.config)
        with torch.device("meta"):
            same = family.from_config(files.config, decoder_trainable="frozen", fusion_trainable=False)
        check_architecture(same, files)
        for change, name in CHANGES.items():
            if family.model_type not in OF_SOME.get(change, (family.model_type,)):
                continue
            config = copy.deepcopy(same.config)
            change(config)
            with torch.device("meta"):
                other = family.from_config(config)
            message = rf"config.json: the model was built for another checkpoint: {name}\S* is .*_from_config"
            with pytest.raises(ValueError, match=message):
                load_weights(other, files, torch.device("cpu"))


def test_the_builder_that_the_error_names_is_one(folder: Path) -> None:
    with CheckpointFolder(folder) as files, torch.device("meta"):
        family = get_family(files.config)
        config = copy.deepcopy(files.config)
        config["image_token_id"] += 1
        with pytest.raises(ValueError, match="what trains and LoRA's arguments") as caught:
            check_architecture(family.from_config(config), files)
    named = re.search(r"\S+_from_config", str(caught.value))
    assert named is not None and _get_component_from_path(named[0]) is family.from_config


def test_another_familys_builder(tiny_folder: Path) -> None:
    with CheckpointFolder(tiny_folder) as files, torch.device("meta"):
        other = FAMILIES["qwen3_vl"].from_config(tiny.tiny_hf_model(family="qwen3_vl").config.to_dict())
        with pytest.raises(ValueError, match=r"of a qwen2_5_vl model, but the builder made a qwen3_vl: set "):
            load_weights(other, files, torch.device("cpu"))
