"""What torchtune's recipes get in place of keys that they do not have."""

import pytest

from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.settings.stock import for_stock_recipe


@pytest.mark.parametrize(("overrides", "samples"), [([], 8), (["pack_to=null", "batch_size=2"], 1)])
def test_recipes_that_do_not_pack_take_as_many_samples_per_step(overrides: list[str], samples: int) -> None:
    stock = for_stock_recipe(resolve("qwen2_5_vl/3B_lora", overrides))
    assert stock.gradient_accumulation_steps == samples and stock.compile is False
