"""Functions that hand arguments on: signature, defaults, and an error for what nobody takes."""

import inspect

import pytest
import torch

from torchtune_qwenvl import models
from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.docstrings import Docstring
from torchtune_qwenvl.models import FAMILIES, glm4v, qwen2_5_vl, qwen3_vl_moe
from torchtune_qwenvl.modules.trainable import plan_training


def shape(*, width: int, depth: int = 2) -> tuple[int, int]:
    return width, depth


@takes_arguments_of(shape, depth=3)
def build(name: str, *, width: int = 1, **sizes: int) -> tuple:
    return name, shape(width=width, **sizes)


def test_signature_and_defaults_are_the_functions_own_before_those_of_others():
    assert str(inspect.signature(build)) == "(name: str, *, width: int = 1, depth: int = 3) -> tuple"
    assert build("a") == ("a", (1, 3)) and build("a", width=5, depth=6) == ("a", (5, 6))


def test_the_error_for_an_unknown_argument_names_the_nearest_one():
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


def documented_shape(*, width: int, depth: int = 2) -> None:
    """Sizes.

    Args:
        width, depth: of the stream,
            and of the stack.
    """


@takes_arguments_of(documented_shape)
def documented_build(name: str, *, width: int = 1, **sizes: int) -> None:
    """Build.

    Args:
        name: what it is called.
        width: ours.
        **sizes: see `documented_shape`.

    Raises:
        ValueError: never.
    """


def test_the_docstring_is_merged_as_the_signature_is():
    assert inspect.getdoc(documented_build).splitlines() == [
        *("Build.", "", "Args:", "    name: what it is called.", "    width: ours."),
        *("    depth: of the stream,", "        and of the stack.", "", "Raises:", "    ValueError: never."),
    ]


def public_components():
    """(name, what it is) of every builder, transform and loader of the families."""
    for package in (getattr(models, name) for name in dir(models)):
        names = getattr(package, "__all__", ()) if inspect.ismodule(package) else ()
        yield from ((f"{package.__name__}.{name}", getattr(package, name)) for name in names)
    for family in FAMILIES.values():
        yield f"{family.model_type}.transform", family.transform


COMPONENTS = dict(public_components())


def test_all_families_are_walked():
    assert len(COMPONENTS) > 60 and "torchtune_qwenvl.models.glm4v.GLM4VTransform" in COMPONENTS
    assert COMPONENTS["torchtune_qwenvl.models.glm4v.glm4_1v_9b"] is glm4v.glm4_1v_9b


@pytest.mark.parametrize("component", COMPONENTS.values(), ids=COMPONENTS)
def test_help_describes_every_argument_of_the_signature(component):
    if not callable(component):
        return
    documented = [component]
    if inspect.isclass(component):  # `help` of a class shows its constructor and names its base classes
        documented = [*component.__mro__, component.__init__]
    docs = [Docstring.of(one) for one in documented if (one.__module__ or "").startswith("torchtune_qwenvl")]
    missing = [n for n in inspect.signature(component).parameters if not any(doc.entry(n) for doc in docs)]
    assert not missing
    for doc in docs:
        assert not [name for names in doc.entries for name in names if name.startswith("*")]
        assert not [text for text in doc.entries.values() if text.startswith("see ")]
