"""torchao's message about its kernels is not shown by our commands; its other messages are."""

import subprocess
import sys

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
