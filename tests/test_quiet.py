"""torchao's message about its kernels is not shown by our commands; its other messages are."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import logging
import {first}
import torchao
logging.getLogger("torchao").warning("Skipping import of cpp extensions: something else")
logging.getLogger("torchao.quantization").warning("and this")
"""


def printed(first: str) -> str:
    code = CODE.format(first=first)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_only_that_message_is_hidden() -> None:
    ours, plain = printed("torchtune_qwenvl.cli.main"), printed("torchtune")
    assert "incompatible torch version" not in ours
    for other in ("Skipping import of cpp extensions: something else", "and this"):
        assert other in ours and other in plain


def test_the_command_says_nothing_of_it() -> None:
    command = [sys.executable, "-m", "torchtune_qwenvl.cli.main", "ls"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cpp extensions" not in finished.stdout + finished.stderr
    assert "qwen2_5_vl/3B_lora" in finished.stdout


@pytest.mark.parametrize(
    ("command", "times"),
    [
        (("torchtune_qwenvl.cli.main", "run", "--nproc_per_node", "2", "finetune"), 0),
        # torchtune imports torchao before it looks at the recipe's name; its two ranks are ours.
        (("torchtune._cli.tune", "run", "--nproc_per_node", "2", "torchtune_qwenvl/recipes/finetune.py"), 1),
    ],
    ids=["tune-qwenvl", "tune"],
)
def test_no_rank_of_a_run_says_it(command: tuple[str, ...], times: int, tmp_path: Path) -> None:
    arguments = ("--config", "demo/digits", "prepare=[]", f"checkpoint_dir={tmp_path / 'nowhere'}")
    done = subprocess.run(
        [sys.executable, "-m", *command, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    printed = done.stdout + done.stderr
    assert "nowhere: expected a checkpoint folder" in printed
    assert printed.count("Skipping import of cpp extensions due to incompatible torch version") == times
