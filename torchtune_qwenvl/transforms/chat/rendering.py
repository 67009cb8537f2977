"""Render a downloaded Jinja template in a process of its own, with limits of time, memory and output.

The sandbox of Jinja keeps a template from files and objects, but not from endless loops and huge strings.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

SECONDS = 20.0
_PROGRAM = Path(__file__).with_name("render_program.py")


@dataclass(frozen=True)
class Rendering:
    """The text that a template gave, or the reason why there is none."""

    text: str = ""
    error: str | None = None


def render_all(template: str, variables: Sequence[Mapping[str, Any]]) -> list[Rendering]:
    """Render a template with the settings that transformers uses.

    Args:
        template: Jinja source.
        variables: for each rendering, what the template reads; values of JSON.
    """
    request = json.dumps({"template": template, "variables": list(variables)})
    return list(_answers(request))


@lru_cache(maxsize=64)  # starting a process takes longer than everything that it does
def _answers(request: str) -> tuple[Rendering, ...]:
    wanted = len(json.loads(request)["variables"])
    try:
        process = subprocess.run(
            [sys.executable, str(_PROGRAM)],
            input=request.encode(),
            capture_output=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return (Rendering(error=f"it takes longer than {SECONDS:g} seconds"),) * wanted
    try:
        answers = json.loads(process.stdout)
    except ValueError:
        last = process.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        return (
            Rendering(error=f"its process ended with code {process.returncode} {last[:200]}".strip()),
        ) * wanted
    return tuple(Rendering(**answer) for answer in answers)
