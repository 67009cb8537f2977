"""Results: a row per measurement, as JSON and as a Markdown table."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, MISS, NOT_RUN = "ok", "miss", "not run"


@dataclass
class Row:
    """One measurement.

    Attributes:
        part: of the benchmark.
        name: what was measured.
        status: "ok", "miss" or "not run".
        figures: name -> number.
        note: why it missed, was not run, or what was expected.
    """

    part: str
    name: str
    status: str = OK
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""


def held(part: str, name: str, figures: Mapping[str, float], limits: Mapping[str, float]) -> Row:
    """A row that is a miss if a figure is above its limit, or no number."""
    above = [
        f"{key} {figures[key]:.2e} > {limit:.0e}"
        for key, limit in limits.items()
        if not figures[key] <= limit
    ]
    return Row(part, name, MISS if above else OK, dict(figures), ", ".join(above))


def write(rows: list[Row], machine: Mapping[str, Any], out: Path) -> None:
    """Write results.json and results.md."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": dict(machine), "rows": [asdict(row) for row in rows]}
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "results.md").write_text(table(rows, machine))


def table(rows: list[Row], machine: Mapping[str, Any]) -> str:
    """A Markdown table with the machine above it."""
    head = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [head, "", "| part | what | figures | |", "|---|---|---|---|"]
    for row in rows:
        figures = ", ".join(f"{name} {number(value)}" for name, value in row.figures.items())
        verdict = row.status + (f": {row.note}" if row.note else "")
        lines.append(f"| {row.part} | {row.name} | {figures} | {verdict} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Three digits, and thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def exit_status(rows: list[Row]) -> int:
    """0: all as expected; 1: a miss; 2: no miss, but something was not run."""
    statuses = {row.status for row in rows}
    return 1 if MISS in statuses else 2 if NOT_RUN in statuses else 0
