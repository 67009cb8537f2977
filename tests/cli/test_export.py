"""`tune-qwenvl export` writes what the run itself would have, and sees when it does not load as trained."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from launch import LORA, Run, run
from safetensors.torch import load_file

from torchtune_qwenvl import load_model, load_transform, load_vision_encoder
from torchtune_qwenvl.cli.main import main
from torchtune_qwenvl.exporting.comparison import compare_adapter, compare_model, logits_of
from torchtune_qwenvl.exporting.trained import from_adapter

DATA = [
    {"conversations": [{"from": "human", "value": f"Say {i}"}, {"from": "gpt", "value": f"It is {i}."}]}
    for i in range(4)
]
MODEL, ADAPTER = "model/model.safetensors", "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps on two processes: adapters in both towers, a fully trained merger; the last is saved."""
    folder = tmp_path_factory.mktemp("run")
    tiny.save_tiny_folder(folder / "checkpoint")
    (folder / "data.json").write_text(json.dumps(DATA))
    arguments = [f"checkpoint_dir={folder / 'checkpoint'}", f"dataset.source={folder / 'data.json'}"]
    model = "torchtune_qwenvl.models.qwen2_5_vl.qwen2_5_vl_from_config"
    arguments += [f"model={model}", f"model.config={folder / 'checkpoint'}", "dtype=fp32", "num_workers=0"]
    arguments += ["optimizer.lr=1e-2", "batch_size=1", "save_every_n_steps=2", *LORA]
    done = run(folder / "out", *arguments, config="base", processes=2)
    assert set(done.codes) == {0}, done.printed
    return done


def same(left: Path, right: Path, name: str) -> bool:
    """Whether names and bits are equal; the order of a file's metadata is arbitrary."""
    a, b = load_file(left / name), load_file(right / name)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_step_folder_gives_what_the_run_gave(finished: Run, capsys: pytest.CaptureFixture) -> None:
    out = finished.output_dir
    main(["export", str(out / "step_2")])
    printed = capsys.readouterr().out.splitlines()
    assert same(out, out / "export", MODEL) and same(out, out / "export", ADAPTER)
    assert printed[0] == f"adapter  {out}/export/adapter" and printed[2] == f"model    {out}/export/model"
    assert "logits differ by 0.0e+00 of their norm (float32 allows 1e-05)" in printed[1]
    assert "logits differ by " in printed[3]


def test_the_vision_encoder_alone(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of the run's step, of its model and of a checkpoint; each equals that part of the whole."""
    out = finished.output_dir
    pixels = torch.randn(24, 1200)
    for folder in (out / "step_2", out / "model", out.parent / "checkpoint"):
        target = tmp_path / folder.name
        main(["export", str(folder), "--vision-only", "--out", str(target)])
        assert capsys.readouterr().out.strip() == str(target)
        whole = load_model(out / "model" if folder.name == "step_2" else folder).vision_encoder
        alone = load_vision_encoder(target)
        width = alone.patch_embed.in_features
        with torch.no_grad():
            expected = whole(pixels[:, :width], [(1, 4, 6)])
            assert (alone(pixels[:, :width], [(1, 4, 6)]) - expected).abs().max() <= 1e-5


def test_an_adapter_gives_the_merged_model(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = finished.output_dir
    main(["export", str(out / "adapter"), "--only", "model", "--out", str(tmp_path)])
    assert same(out, tmp_path, MODEL) and not (tmp_path / "adapter").exists()
    main(["export", str(out / "adapter"), "--out", str(tmp_path), "--dtype", "bf16", "--no-compare"])
    assert "differ" not in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / MODEL).stat().st_size < 0.6 * (out / MODEL).stat().st_size
    source = out.parent / "checkpoint"
    expected = logits_of(from_adapter(out / "adapter", source).model("cpu"), load_transform(source))
    assert "bfloat16 allows 0.03" in compare_model(tmp_path / "model", source, expected, "cpu")


def test_a_folder_that_says_something_else_is_no_success(finished: Run) -> None:
    out, source = finished.output_dir, finished.output_dir.parent / "checkpoint"
    plain, pictured = logits_of(from_adapter(out / "adapter", source).model("cpu"), load_transform(source))
    compare_adapter(out / "adapter", source, [plain, pictured], "cpu")
    for wrong in ([plain, pictured * 1.001], [plain, pictured * torch.nan]):
        with pytest.raises(ValueError, match="Do not use it"):
            compare_adapter(out / "adapter", source, wrong, "cpu")
    # The folder that training began from, in the trained one's place.
    with pytest.raises(ValueError, match="checkpoint: loaded again, its logits differ"):
        compare_model(source, source, [plain, pictured], "cpu")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["OUT"], "expected a step_N folder of a run, with run.json in it, or an adapter"),
        (["OUT/adapter", "--checkpoint-dir", "nowhere"], "belongs to nowhere, no folder here"),
        (["OUT/step_2", "model.lora_attn_modules=[q_proj]"], "holds other trained parameters"),
        (["OUT/step_2", "epoch=1"], "Did you mean 'epochs'"),
    ],
)
def test_common_mistakes(finished: Run, argv: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["export", *(word.replace("OUT", str(finished.output_dir)) for word in argv)])
