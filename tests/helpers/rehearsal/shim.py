"""What torch's autograd needs to run a backward pass on fake CUDA tensors where there is no driver.

torch asks the CUDA runtime for its devices and the driver for their contexts. Two small C libraries answer:
one is loaded before torch, the other takes the place of the driver's library.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

DEVICES, DRIVER = "devices.so", "libcuda.so.1"
SOURCES = Path(__file__).parent / "shim"


def missing() -> str | None:
    """Why nothing can be rehearsed on this machine; None if it can."""
    import torch

    if torch.cuda.is_available():
        return "there is a GPU: benchmarks measure on it, nothing has to be rehearsed"
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    if sys.platform != "linux":
        return "the shims for the CUDA driver are for Linux"
    return None if shutil.which("cc") else "no C compiler (cc), which the shims for the CUDA driver need"


def build(folder: Path) -> None:
    """Compile the shims into `folder`."""
    _compile(SOURCES / "devices.c", folder / DEVICES, "-ldl")
    _compile(SOURCES / "driver.c", folder / DRIVER, f"-Wl,-soname,{DRIVER}")


def run(folder: Path, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program with the shims in `folder`; its output is in the result."""
    shims = {"LD_PRELOAD": str(folder / DEVICES), "LD_LIBRARY_PATH": str(folder)}
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        env={**os.environ, **shims, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def _compile(source: Path, target: Path, *options: str) -> None:
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(target), str(source), *options], check=True)
