"""Every key of the base configs set to odd values: taken where a table says so, else refused by its name.

CAMPAIGN=1 tries every value with every key.
"""

import random

import pytest
from faults.campaign import campaign_seed, campaign_size
from faults.odd_settings import BOOLS, NULL, ODD, TAKEN, keys

from torchtune_qwenvl.settings.config import resolve

# The arguments of an encoder that is loaded depend on its folder, so that they are checked when it is read.
OF_VIT = {"activation_checkpointing": BOOLS, "model": NULL | {"{a: 1}"}}
START = {
    "finetune": ("qwen2_5_vl/3B_lora", ("dataset.source=data.json", "val_dataset.source=data.json")),
    "train_vit": ("vit/imagefolder", ("dataset.source=photos", "checkpoint_dir=here")),
}


def cases(recipe: str, n_values: int) -> list[tuple[str, str]]:
    chosen = random.Random(campaign_seed())
    return [(key, value) for key in keys(recipe) for value in chosen.sample(ODD, n_values)]


def refusal(recipe: str, key: str, value: str) -> str | None:
    """The message with which a config is refused; None if it is taken."""
    name, common = START[recipe]
    try:
        resolve(name, [*(text for text in common if not text.startswith(f"{key}.")), f"{key}={value}"])
    except ValueError as error:
        return str(error)
    return None


def test_the_table_names_every_key() -> None:
    assert not [key for recipe in START for key in keys(recipe) if key not in TAKEN]


@pytest.mark.parametrize("recipe", START)
def test_every_key_with_odd_values(recipe: str) -> None:
    tried = cases(recipe, campaign_size(3, len(ODD)))
    wrong = []
    for key, value in tried:
        taken = OF_VIT.get(key, TAKEN[key]) if recipe == "train_vit" else TAKEN[key]
        if key == "collate_fn":  # a function of that name has to exist as well
            taken = set()
        message = refusal(recipe, key, value)
        if (message is None) != (value in taken) or (message and key.split(".")[-1] not in message):
            wrong.append((key, value, message))
    assert not wrong
    assert len(tried) >= {"finetune": 300, "train_vit": 120}[recipe]
