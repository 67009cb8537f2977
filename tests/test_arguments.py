"""Functions that hand arguments on: signature, defaults, and an error for what nobody takes."""

import inspect

import pytest
import torch

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models import FAMILIES, qwen2_5_vl, qwen3_vl_moe
from torchtune_qwenvl.modules.trainable import plan_training


def shape(*, width: int, depth: int = 2) -> tuple[int, int]:
    return width, depth


@takes_arguments_of(shape, depth=3)
def build(name: str, *, width: int = 1, **sizes: int) -> tuple:
    return name, shape(width=width, **sizes)


def test_signature_and_defaults_are_the_functions_own_before_those_of_others():
    assert str(inspect.signature(build)) == "(name: str, *, width: int = 1, depth: int = 3) -> tuple"
    assert build("a") == ("a", (1, 3)) and build("a", width=5, depth=6) == ("a", (5, 6))


def test_an_unknown_argument_is_told_with_the_nearest_one():
    with pytest.raises(TypeError, match=r"build has no argument 'dept'. Did you mean 'depth'\?"):
        build("a", dept=3)
    with pytest.raises(TypeError, match="do not take: \\['height'\\]"):
        takes_arguments_of(shape, height=3)(build)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_familys_builder_says_what_it_takes(family):
    parameters = inspect.signature(family.from_config).parameters
    assert inspect.signature(plan_training).parameters.keys() <= parameters.keys()
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def test_published_sizes_have_names_docs_and_the_builders_arguments():
    builder = qwen2_5_vl.qwen2_5_vl_3b
    assert builder.__name__ == "qwen2_5_vl_3b" and "3,754,622,976 parameters" in builder.__doc__
    assert inspect.signature(builder).parameters["image_std"].default == (0.26862954, 0.26130258, 0.27577711)
    assert "experts_trainable" in inspect.signature(qwen3_vl_moe.qwen3_vl_30b_a3b).parameters
    with torch.device("meta"), pytest.raises(TypeError, match=r"qwen2_5_vl_3b has .* mean 'lora_rank'"):
        builder(lora_rnk=8)
