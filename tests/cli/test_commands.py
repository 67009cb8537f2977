"""`tune-qwenvl`: torchtune's commands with our recipes and configs; a user's mistake gives one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch import command
from omegaconf import OmegaConf

from torchtune_qwenvl.cli.main import COMMANDS, main, make_parser, parse
from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.settings.files import packaged_names

NAME = "qwen2_5_vl/3B_lora"


def printed(capsys: pytest.CaptureFixture, *argv: str) -> str:
    main(argv)
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The last line of a command that ends with an error."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    captured = capsys.readouterr().err.strip().splitlines()
    return stop.value.code if isinstance(stop.value.code, str) else captured[-1]


def test_ls_lists_ours_and_torchtunes(capsys: pytest.CaptureFixture) -> None:
    table = printed(capsys, "ls")
    table = printed(capsys, "ls")  # a second time: registered once
    recipes = re.findall(r"^(\S+) ", table, re.M)
    assert "lora_finetune_single_device" in recipes and recipes.count("finetune") == 1
    listed = re.findall(r"\b[a-z0-9_]+/[\w.]+", table.partition("\nfinetune ")[2])
    assert set(packaged_names()) == set(listed)


def test_a_copied_config_is_the_config(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = tmp_path / "mine.yaml"
    main(["cp", NAME, str(copy)])
    assert "lora_rank: 16" in copy.read_text() and resolve(str(copy)) == resolve(NAME)
    main(["cp", "demo/digits", str(tmp_path)])
    assert "# A tiny Qwen2.5-VL" in (tmp_path / "digits.yaml").read_text()
    copy.write_text("seed: 1")
    assert "not overwriting" in printed(capsys, "cp", "-n", NAME, str(copy))
    assert copy.read_text() == "seed: 1"
    main(["cp", "finetune", str(tmp_path / "my_recipe.py")])
    assert "class FinetuneRecipe" in (tmp_path / "my_recipe.py").read_text()


def test_show_and_validate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shown = OmegaConf.create(printed(capsys, "show", NAME, "batch_size=7"))
    assert shown.batch_size == 7 and shown.tokenizer.folder == shown.checkpoint_dir
    (tmp_path / "stock.yaml").write_text(printed(capsys, "show", NAME, "--stock", "dataset.source=a.json"))
    for argv in ([NAME, "seed=1"], ["demo/digits"], [str(tmp_path / "stock.yaml")]):
        assert printed(capsys, "validate", *argv).startswith("Config is well-formed!\n")
    stock = OmegaConf.load(tmp_path / "stock.yaml")
    stock.loss.chunks = 3
    OmegaConf.save(stock, tmp_path / "stock.yaml")
    assert "chunks" in refused(capsys, "validate", str(tmp_path / "stock.yaml"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("rn finetune", "no command 'rn'. Did you mean 'run'?"),
        ("run fintune --config demo/digits", "no recipe 'fintune'. Did you mean 'finetune'?"),
        ("run finetune --config demo/digit", "No config called 'demo/digit'. Did you mean 'demo/digits'?"),
        ("run --nproc_per_node 2 finetune --config demo/digits epoch=1", "Did you mean 'epochs'?"),
        ("run finetune demo/digits", "Expected --config NAME"),
        (f"validate {NAME} optimizer.lr=abc", "'optimizer.lr': expected a number greater than 0, got 'abc'"),
        (f"show {NAME} batch_siz=1", "Did you mean 'batch_size'?"),
        ("validate qwen2_5_vl/3B_lra", f"Did you mean '{NAME}'?"),
        ("cp qwen2_5_vl/3B_lra .", f"no recipe or config 'qwen2_5_vl/3B_lra'. Did you mean '{NAME}'?"),
    ],
)
def test_mistakes_get_an_answer(argv: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in refused(capsys, *argv.split())


def test_help_speaks_of_this_command(capsys: pytest.CaptureFixture) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        text = capsys.readouterr().out
        assert text.startswith(f"usage: tune-qwenvl {name}") and not re.search(r"\btune (run|ls|cp)\b", text)


@pytest.mark.parametrize("recipe", ["finetune", "train_vit", "generate"])
def test_help_of_a_recipe(recipe: str, capsys: pytest.CaptureFixture) -> None:
    try:
        main(["run", recipe, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: tune-qwenvl run {recipe}") and "checkpoint_dir=" in text
    arguments = ["dataset.image_root", "dataset.column_map", "model.lora_rank"]
    assert recipe != "finetune" or all(f"\n{name}\n    Takes " in text for name in arguments)


def test_options_as_pairs_next_to_keys_of_a_config() -> None:
    check = parse(make_parser("check"), ["check", "a.jsonl", "workers=1", "out=x", "num_workers=2"])
    assert (check.workers, str(check.out), check.overrides) == (1, "x", ["a.jsonl", "num_workers=2"])
    export = parse(make_parser("export"), ["export", "step_5", "dtype=fp32", "only=adapter"])
    assert (export.dtype, export.only, export.overrides) == (None, "adapter", ["dtype=fp32"])
    chat = parse(make_parser("chat"), ["chat", "DIR", "max_new_tokens=6", "dtype=fp32", "top_k=3"])
    assert (chat.max_new_tokens, chat.dtype, chat.sampling) == (6, "fp32", ["top_k=3"])


def test_validate_names_files_that_are_not_there(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text("")
    here = ["dataset.source=" + str(tmp_path / "a.jsonl"), f"checkpoint_dir={tiny_folder}"]
    text = printed(capsys, "validate", NAME, *here)
    assert "Before it can run" not in text
    gone = [f"dataset.source={tmp_path}/nope.jsonl", f"checkpoint_dir={tmp_path}"]
    text = printed(capsys, "validate", NAME, *gone)
    assert f"Before it can run: dataset.source: {tmp_path}/nope.jsonl: no such file" in text
    assert f"Before it can run: checkpoint_dir: {tmp_path}: no config.json or adapter_config.json" in text


def test_commands_take_key_value_as_recipes_do(tmp_path: Path) -> None:
    parser = make_parser("probe")
    given = parse(parser, ["probe", str(tmp_path), f"encoder={tmp_path}"])
    assert given == parse(parser, ["probe", str(tmp_path), "--encoder", str(tmp_path)])


def test_an_absolute_recipe_and_config(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "my_own.py").write_text("import sys\nif __name__ == '__main__':\n    print(sys.argv[1:])\n")
    (tmp_path / "mine.yaml").write_text(f"include: {NAME}\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    argv = ["--config", str(tmp_path / "mine.yaml"), "seed=1"]
    assert str(argv) in printed(capsys, "run", str(tmp_path / "my_own.py"), *argv)
    assert "Config is well-formed!" in printed(capsys, "validate", str(tmp_path / "mine.yaml"))
    assert "no recipe /nowhere/x.py" in refused(capsys, "run", "/nowhere/x.py", *argv)


def test_run_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    missing = f"checkpoint_dir={tmp_path / 'nowhere'}"
    argv = ["run", "finetune", "--config", NAME, "dataset.source=x.json", missing, f"output_dir={tmp_path}"]
    code, text = command(tmp_path / "printed.txt", argv)
    assert code == 1 and "Traceback" not in text
    assert (
        "tune-qwenvl run: error:" in text.splitlines()[-1]
        and f"{tmp_path}/nowhere: expected a checkpoint folder" in text
    )
    code, text = command(tmp_path / "printed.txt", ["run", "generate", "image=cat.jpg"])
    assert code == 1 and "checkpoint_dir is missing" in text.splitlines()[-1]


@pytest.mark.parametrize(
    "argv", [["--help"], *([name, "--help"] for name in ("check", "export", "show", "embed"))]
)
def test_help_answers_without_torch(argv: list[str]) -> None:
    code = (
        "import sys\n"
        "from torchtune_qwenvl.cli.main import main\n"
        "try:\n"
        f"    main({argv})\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: tune-qwenvl" in done.stdout
