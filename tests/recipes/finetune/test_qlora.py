"""QLoRA by the recipe: resumed to the last bit, shared by two ranks, merged into the checkpoint's weights."""

from pathlib import Path

import pytest
import tiny
import torch
from cases import of_scale
from launch import Run, run
from safetensors.torch import load_file

from torchtune_qwenvl import load_model
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter

# Two ranks share every linear of the decoder in whole blocks of 16,384 values.
TEXT = {"hidden_size": 256, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 256}
QLORA = (
    "model.encoder_trainable=frozen",
    "model.fusion_trainable=full",
    "model.decoder_trainable=lora",
    "model.lora_attn_modules=[q_proj,v_proj]",
    "model.apply_lora_to_mlp=true",
    "model.lora_rank=4",
    "model.lora_alpha=8",
    "model.quantize_base=true",
    "activation_checkpointing.decoder=true",
    "export_dtype=fp32",
)
SAVING = ("save_every_n_steps=2", "model.lora_dropout=0.1")


@pytest.fixture(scope="module")
def wide(config: Path) -> str:
    """A checkpoint folder next to the tiny one, as an override."""
    folder = config.parent / "wide"
    tiny.save_tiny_folder(folder, text=TEXT, vision={"out_hidden_size": 256}, dtype=torch.bfloat16)
    return f"checkpoint_dir={folder}"


@pytest.fixture(scope="module")
def reference(config: Path, wide: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on one process, without interruption."""
    finished = run(tmp_path_factory.mktemp("qlora") / "out", *QLORA, *SAVING, wide, config=config)
    assert finished.codes == [0], finished.printed
    return finished


def test_resumed_to_the_last_bit(reference: Run, config: Path, wide: str, tmp_path: Path) -> None:
    killed = run(tmp_path / "out", *QLORA, *SAVING, wide, config=config, kill_at="step 4")
    assert killed.codes == [-9]
    resumed = run(tmp_path / "out", *QLORA, *SAVING, wide, "resume=true", config=config)
    assert resumed.codes == [0], resumed.printed
    assert resumed.values("loss") == reference.values("loss") and len(resumed.values("loss")) == 4
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        assert (resumed.output_dir / file).read_bytes() == (reference.output_dir / file).read_bytes()


def test_start_lists_what_is_quantised(reference: Run) -> None:
    assert "quantize_base: 14 weights, 786,432 values, in NF4. Not quantised: " in reference.printed
    assert "decoder.tok_embeddings.weight (float32)" in reference.printed


def test_adapter_is_merged_into_the_checkpoints_own_weights(reference: Run, wide: str) -> None:
    """The adapter is merged into the checkpoint's own weights, not into the dequantised ones."""
    source = Path(wide.partition("=")[2])
    merged, base = (load_file(f / "model.safetensors") for f in (reference.output_dir / "model", source))
    for name, weight in base.items():
        adapted = "layers" in name and name.endswith(("q_proj.weight", "v_proj.weight"))
        adapted |= "model.layers" in name and "mlp" in name
        trained = adapted or "merger" in name
        assert torch.equal(merged[name], weight.float()) != trained, name
    arguments = adapter_arguments(reference.output_dir / "adapter", source)
    adapter = load_adapter(load_model(source, torch.float32, **arguments), reference.output_dir / "adapter")
    batch = {"tokens": torch.arange(20)[None]}
    with torch.no_grad():
        whole = load_model(reference.output_dir / "model")(**batch)
        assert of_scale(adapter.eval()(**batch), whole) <= 1e-5


def test_two_ranks_share_it(config: Path, wide: str, tmp_path: Path) -> None:
    one = run(tmp_path / "one", *QLORA, wide, config=config)
    two = run(tmp_path / "two", *QLORA, wide, "batch_size=1", config=config, processes=2)
    assert two.codes == [0, 0], two.printed
    for metric in ("loss", "grad_norm"):
        expected = [float(value) for value in one.values(metric).values()]
        assert [float(value) for value in two.values(metric).values()] == pytest.approx(expected, rel=1e-5)


def test_what_ranks_cannot_share_is_said(config: Path, wide: str, tmp_path: Path) -> None:
    failed = run(tmp_path / "out", *QLORA, wide, config=config, processes=3)
    assert set(failed.codes) == {1}
    assert "has 256 x 256 values, which 3 processes cannot share" in failed.printed
