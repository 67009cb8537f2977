"""Renew the table of ceilings: what a step of every default case costs now.

python tests/helpers/rehearsal/ceilings.py
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from rehearsal import shim
from rehearsal.run import PROGRAM
from rehearsal.work import DEFAULT

TABLE = Path(__file__).resolve().parents[2] / "cuda_rehearsal" / "ceilings.json"


def main() -> None:
    """Rehearse all default cases and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        shim.build(Path(folder))
        done = shim.run(Path(folder), PROGRAM, *map(str, DEFAULT))
    found = json.loads(done.stdout)
    cases = {case: findings["cost"] for case, findings in found.items()}
    version = ".".join(torch.__version__.split(".")[:2])
    TABLE.write_text(json.dumps({"torch": version, "cases": cases}, indent=2) + "\n")


if __name__ == "__main__":
    main()
