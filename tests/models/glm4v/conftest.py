"""Folders of either generation of GLM, without weights; their transforms and transformers' processors."""

import json

import pytest
import tiny
from tiny_glm4v import GLM_REASONING_TEMPLATE
from transformers import AutoProcessor

from torchtune_qwenvl import load_transform


@pytest.fixture(scope="module", params=["glm4.1v", "glm4.6v", "glm4.6v without thinking"])
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def folder(variant, tmp_path_factory):
    """All but the weights; with the template of either generation."""
    path = tmp_path_factory.mktemp("glm") / variant.split()[0]
    path.mkdir()
    tiny.write_processor_files(path, family="glm4v")
    config = tiny.nested_config(tiny.tiny_hf_config(family="glm4v"))
    (path / "config.json").write_text(json.dumps(config))
    if path.name == "glm4.6v":
        (path / "chat_template.json").write_text(json.dumps({"chat_template": GLM_REASONING_TEMPLATE}))
        for file in path.glob("*preprocessor_config.json"):
            file.write_text(file.read_text().replace("Glm4v", "Glm46V"))
    return path


@pytest.fixture(scope="module")
def switch(variant):
    """What our transform and the template are given alike."""
    return {"enable_thinking": False} if variant.endswith("without thinking") else {}


@pytest.fixture(scope="module")
def transform(folder, switch):
    return load_transform(folder, **switch)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)
