"""Loading raises the process's own memory by the weights once, as the benchmark measures it."""

import re
import subprocess
import sys
from pathlib import Path

import tiny
import torch

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "loading.py"


def test_memory_rises_by_the_weights_once(tmp_path):
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 32}
    model = tiny.tiny_hf_model(vocab_size=98304, text=text, vision={"out_hidden_size": 512})
    folder = tiny.save_tiny_folder(
        tmp_path / "source", model=model, dtype=torch.bfloat16, max_shard_size="60MB"
    )
    command = [sys.executable, BENCHMARK, "--folder", folder, "--side", "ours"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"\| ours \| (\d+) \| (\d+) \| \d+ \| ([\d.]+) \|", done.stdout)
    assert found, done.stdout
    megabytes, files, rise = float(found[1]), int(found[2]), float(found[3])
    assert megabytes >= 200 and files > 2
    assert 0.5 <= rise <= 1.2
