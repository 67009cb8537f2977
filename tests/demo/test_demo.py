"""The README's first command: what it prints and writes, and how well the model learns."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

ARGUMENTS = ["run", "torchtune_qwenvl/recipes/finetune.py", "--config", "demo/digits"]
QUESTION = [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of the command, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-c", "from torchtune._cli.tune import main; main()", *ARGUMENTS]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "outputs/digits", done.stdout


def test_last_line_is_an_accuracy_of_at_least_096(run: tuple[Path, str]):
    last = run[1].splitlines()[-1]
    match = re.fullmatch(r"held-out accuracy (\d\.\d{3}) \(360 images\)", last)
    assert match, last
    assert float(match[1]) >= 0.96


def test_validation_is_logged_as_it_goes(run: tuple[Path, str]):
    printed = re.findall(r"step (\d+): val_loss (\S+), val_accuracy (\S+)", run[1])
    assert [int(step) for step, *_ in printed] == [*range(40, 618, 40), 618]
    assert float(printed[-1][1]) < 0.1 * float(printed[0][1])
    assert "val_accuracy" in (run[0] / "logs/metrics.txt").read_text()


@pytest.mark.parametrize("name", ["curves.png", "answers.png"])
def test_pictures_are_not_empty(run: tuple[Path, str], name: str):
    with Image.open(run[0] / name) as image:
        assert image.width > 1000
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_transformers_reads_the_same_digits_with_the_trained_folder(run: tuple[Path, str]):
    folder = run[0]
    model, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder / "model", output_loading_info=True
    )
    assert not any(found.values())
    processor = AutoProcessor.from_pretrained(folder / "model")
    text = processor.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    records = [json.loads(line) for line in (folder / "data/test.jsonl").read_text().splitlines()[:40]]
    images = [Image.open(folder / "data" / record["image"]).convert("RGB") for record in records]
    inputs = processor(text=[text] * len(images), images=images, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    answers = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    expected = [record["conversations"][1]["value"] for record in records]
    assert sum(a == b for a, b in zip(answers, expected, strict=True)) >= 0.9 * len(expected)
