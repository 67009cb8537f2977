"""A mixture of experts with the load-balance loss, through the recipe: trained on, logged apart."""

from pathlib import Path

import pytest
import tiny
from launch import run

VALIDATION = (
    "val_dataset=torchtune_qwenvl.data.vision_chat_dataset",
    "run_val_every_n_steps=1",
    "val_answers=1",
    "val_answer_tokens=2",
)


@pytest.fixture(scope="module")
def mixture(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `config` with a mixture of experts."""
    folder = tmp_path_factory.mktemp("experts")
    tiny.save_tiny_folder(folder / "checkpoint", family="qwen3_vl_moe")
    text = config.read_text().replace(f"{config.parent}/checkpoint", f"{folder}/checkpoint")
    (folder / "run.yaml").write_text(text.replace("qwen2_5_vl", "qwen3_vl_moe"))
    return folder / "run.yaml"


@pytest.mark.parametrize("processes", [1, 2])
def test_the_term_is_in_no_loss_and_logged_apart(
    config: Path, mixture: Path, tmp_path: Path, processes: int
) -> None:
    """Validation, with its questions, comes between the steps; the steps' batches differ in size."""
    overrides = (*VALIDATION, f"val_dataset.source={config.parent / 'data.json'}", "shuffle=false")
    saved = (*overrides, "batch_size=1", "max_steps_per_epoch=2", "activation_checkpointing.decoder=true")
    runs = {
        coef: run(
            tmp_path / f"{coef}",
            *saved,
            f"model.router_aux_loss_coef={coef}",
            config=mixture,
            processes=processes,
        )
        for coef in (0.0, 0.5)
    }
    for finished in runs.values():
        assert finished.codes == [0] * processes, finished.printed
    plain, balanced = runs[0.0], runs[0.5]
    assert balanced.values("loss")[1] == plain.values("loss")[1]
    assert balanced.values("loss")[2] != plain.values("loss")[2]
    assert set(balanced.values("val_loss")) == {1, 2}
    # top_k for an even load; at least that for any other.
    assert all(float(value) >= 1 for value in balanced.values("router_aux_loss").values())
    assert set(balanced.values("router_aux_loss")) == {1, 2} and not plain.values("router_aux_loss")
