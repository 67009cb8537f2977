"""Save, kill, resume: the weights at the end are those of a run that nothing stopped, bit for bit.

Every run is a forked process, started before anything is on the GPU: CUDA does not survive a fork.
"""

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from on_gpu.data import write_conversations
from on_gpu.rows import MISS, Row
from on_gpu.setting import Measurement, Setting
from torchtune_qwenvl.demo import write_tiny_checkpoint
from torchtune_qwenvl.recipes.finetune import main

EPOCHS, FEWER = 4, 2  # the second in a rehearsal
PATIENCE = 120  # seconds until the first step has been saved


def measurements(setting: Setting) -> Iterator[Measurement]:
    """Only one."""
    yield "save, kill, resume", partial(_resume, setting)


def _resume(setting: Setting) -> Row:
    if torch.cuda.is_initialized():
        raise RuntimeError("resuming has to be measured first: CUDA does not survive a fork")
    checkpoint = setting.folder / "resumed"
    write_tiny_checkpoint(str(checkpoint))
    data = write_conversations(setting)
    whole, stopped = setting.folder / "whole", setting.folder / "stopped"
    _wait(_started(setting, checkpoint, data, whole))
    run = _started(setting, checkpoint, data, stopped)
    _kill(run, stopped / "step_1")
    saved = len(list(stopped.glob("step_*")))
    _wait(_started(setting, checkpoint, data, stopped, "resume=true"))
    differing = different(whole / "model", stopped / "model")
    figures = {"steps saved before the kill": float(saved), "tensors that differ": float(len(differing))}
    row = Row("resume", "save, kill, resume", figures=figures)
    if differing:
        row.status, row.note = MISS, f"{differing[0]} differs"
    return row


def _started(
    setting: Setting, checkpoint: Path, data: Path, out: Path, *overrides: str
) -> mp.process.BaseProcess:
    words = [
        *("--config", "qwen2_5_vl/3B_full", "model=torchtune_qwenvl.models.any_model"),
        *(f"model.folder={checkpoint}", f"checkpoint_dir={checkpoint}", f"output_dir={out}"),
        *(f"dataset.source={data}", f"device={setting.device.type}", f"epochs={setting.size(EPOCHS, FEWER)}"),
        "compile=false",
        *("num_workers=0", "save_every_n_steps=1", "keep_last_n=null", "val_answers=0"),
        *("pack_to=1024", "tokenizer.max_seq_len=1024", f"tokenizer.max_pixels={112 * 112}"),
        *("log_every_n_steps=1", "keep_lengths=false"),
    ]
    process = mp.get_context("fork").Process(target=_run, args=([*words, *overrides],))
    process.start()
    return process


def _run(words: list[str]) -> None:
    """The recipe, with kernels that add in the same order every time."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)
    main(words)


def _kill(process: mp.process.BaseProcess, saved: Path) -> None:
    """Kill the run as soon as this step has been saved."""
    end = time.monotonic() + PATIENCE
    while not saved.is_dir():
        if not process.is_alive() or time.monotonic() > end:
            raise RuntimeError(f"the run ended, or {PATIENCE} s passed, before {saved.name} was saved")
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def _wait(process: mp.process.BaseProcess) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a run of the recipe ended with status {process.exitcode}; its error is above")


def different(one: Path, other: Path) -> list[str]:
    """Names of the tensors of two model folders that are not the same to the bit."""
    found = []
    for file in sorted(one.glob("*.safetensors")):
        with safe_open(file, "pt") as a, safe_open(other / file.name, "pt") as b:
            names = list(a.keys())
            found += [name for name in names if not torch.equal(a.get_tensor(name), b.get_tensor(name))]
    return found
