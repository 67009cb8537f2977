"""`tune-qwenvl check` from the command line to its files."""

import json
import re
from pathlib import Path

import pytest
from launch import command
from record_sets.damaged import write_damaged

from torchtune_qwenvl.cli.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 records, three of them damaged."""
    return write_damaged(tmp_path_factory.mktemp("data"), 300)[0]


def test_bad_samples_are_named_and_the_status_says_so(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["check", str(data), "--checkpoint-dir", str(tiny_folder), "--out", str(out), "--workers", "1"]
    code, printed = command(tmp_path / "printed.txt", argv)
    assert code == 1, printed
    assert "300 samples: 297 good, 3 bad" in printed and "bad samples, 3 kinds" in printed
    assert "not valid JSON" in printed and "sample 37 (from 0; line 38)" in printed
    listed = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]
    assert [bad["index"] for bad in listed] == [37, 137, 237]
    assert {path.name for path in out.iterdir()} == {
        "report.txt",
        "bad_samples.jsonl",
        "lengths.png",
        "samples.png",
    }
    assert (out / "report.txt").read_text().strip() in printed


def test_a_clean_file_by_a_config_ends_well(
    tiny_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good = data.with_name("good.jsonl")
    good.write_text("".join(data.read_text().splitlines(keepends=True)[:30]))
    overrides = [f"val_dataset.source={good}", f"output_dir={tmp_path}", f"checkpoint_dir={tiny_folder}"]
    argv = ["--config", "qwen2_5_vl/3B_lora", "--split", "val_dataset", "--workers", "0", "--no-decode"]
    main(["check", *overrides, *argv, "tokenizer.max_seq_len=200"])
    printed = capsys.readouterr().out
    assert "30 samples: 30 good, 0 bad\n" in printed and "max_seq_len 200: every sample fits" in printed
    assert (tmp_path / "check/report.txt").is_file()
    assert (tmp_path / "check/bad_samples.jsonl").read_text() == ""
    with pytest.raises(SystemExit, match="1"):
        main(["check", *overrides, *argv, "tokenizer.max_seq_len=90", "on_too_long=skip"])
    assert re.search(r"30 samples: \d+ good, 0 bad, \d+ too long\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.json"], "expected a file ending in .json, .jsonl, .parquet"),
        (["a.json", "b.json"], "expected one data file, got a.json and b.json"),
        ([], "'dataset' is not set: give dataset.source=data.json"),
        (["DATA", "dataset.image_root=nowhere"], "image_root: expected a folder, found none at"),
        (["DATA", "--checkpoint-dir", "nowhere"], "nowhere: expected a checkpoint folder"),
    ],
)
def test_common_mistakes(tiny_folder: Path, data: Path, argv: list[str], message: str) -> None:
    words = [str(data) if word == "DATA" else word for word in argv]
    with pytest.raises(SystemExit, match=message):
        main(["check", "--checkpoint-dir", str(tiny_folder), *words])
