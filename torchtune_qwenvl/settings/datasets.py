"""Keys with a short form: `model: any`, and `dataset:`, which is a file, a builder or a weighted list."""

from collections.abc import Mapping
from typing import Any

COMPONENT = "_component_"
# Keys that take a dataset. What `dataset.source=data.json` means without a component depends on the recipe.
DATASETS = ("dataset", "val_dataset")
# The component of a list of datasets.
MIXED = "torchtune_qwenvl.data.mixed_dataset"
# Keys of a dataset in a list that belong to the mix, not to the dataset's builder.
OF_THE_MIX = {"weight", "label"}
# `model=any` is short for the builder that finds family and size in a checkpoint folder.
ANY, ANY_MODEL = "any", "torchtune_qwenvl.models.any_model"


def with_component(node: Any, default: str) -> Any:
    """A dataset's node with its `_component_`. In a mix, every dataset gets its own."""
    if isinstance(node, list):
        node = {COMPONENT: MIXED, "datasets": node}
    if not isinstance(node, dict):
        return node
    members = node.get("datasets")
    if node.get(COMPONENT) == MIXED and isinstance(members, list):
        node = {**node, "datasets": [with_component(member, default) for member in members]}
    return {COMPONENT: default, **node}


def with_folder(node: Any) -> Any:
    """A model's node; `any` gets its component, and the checkpoint folder where none is named."""
    if node == ANY or (isinstance(node, dict) and node.get(COMPONENT) == ANY):
        node = {**(node if isinstance(node, dict) else {}), COMPONENT: ANY_MODEL}
    if isinstance(node, dict) and node.get(COMPONENT) == ANY_MODEL:
        return {COMPONENT: ANY_MODEL, "folder": "${checkpoint_dir}", **node}
    return node


def check_mix(path: str, node: Mapping[str, Any]) -> None:
    """Raise a ValueError for wrong weights of a mix, before anything is loaded."""
    # Imported here: they import torch and datasets, which most configs do not need.
    from torchtune_qwenvl.data.mixed_dataset import weights_of
    from torchtune_qwenvl.data.order.mixture import check_weights

    members = node.get("datasets")
    try:
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise ValueError(f"expected a list of datasets, each with keys of its own, got {members!r}")
        check_weights(weights_of(members) or [1])
    except ValueError as error:
        raise ValueError(f"Config key '{path}': {error}") from error
