"""Rehearse cases and print what they did, as one JSON object: case -> findings, or its error.

python tests/helpers/rehearsal/run.py qwen3_vl:lora:one qwen3_vl_moe:full:sharded
"""

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rehearsal.graphs import count
from rehearsal.step import rehearse
from rehearsal.work import Case, Sample

PROGRAM = Path(__file__).resolve()
GRAPHS = "graphs of "  # before the name of a case: only compile its layers
# The batches of an optimizer step: a row of images of mixed sizes and text, a clip, and text alone, for which
# an encoder that trains gets a black image.
ROW = (Sample(700, 150, [(1, 20, 30), (1, 16, 16)]), Sample(500, 100, [(1, 8, 12)]), Sample(300, 50))
CLIP = (Sample(900, 100, [(4, 12, 16)]),)
TEXT = (Sample(300, 60), Sample(40, 20))


def main(names: list[str]) -> None:
    """Print the findings of each case."""
    found = {}
    for name in names:
        try:
            if name.startswith(GRAPHS):
                found[name] = count(Case.parse(name.removeprefix(GRAPHS)))
                continue
            case = Case.parse(name)
            findings = rehearse(case, (ROW, CLIP, TEXT) if case.mode.startswith("full") else (ROW, CLIP))
            found[name] = {**asdict(findings), "cost": findings.cost}
        except Exception as error:
            frames = [
                f for f in traceback.extract_tb(error.__traceback__) if "torchtune_qwenvl" in f.filename
            ]
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-4:]))
            found[name] = {"error": f"{type(error).__name__}: {str(error)[:400]} at {where}"}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
