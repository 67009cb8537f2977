"""The files that a check writes: a text, a list of bad samples and a chart of lengths."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchtune_qwenvl.checking.facts import Facts
from torchtune_qwenvl.checking.summary import summary
from torchtune_qwenvl.pictures.lengths import draw_lengths


def write_report(facts: Sequence[Facts], transform: Any, out: Path) -> None:
    """Write report.txt, bad_samples.jsonl and lengths.png."""
    out.mkdir(parents=True, exist_ok=True)
    whole = summary(facts, transform.max_seq_len, shown=len(facts))
    (out / "report.txt").write_text(whole + "\n", encoding="utf-8")
    with (out / "bad_samples.jsonl").open("w", encoding="utf-8") as file:
        for bad in facts:
            kind, reason = bad.kind, bad.reason
            if bad.too_long:
                kind = "longer than max_seq_len"
                reason = f"{bad.tokens} tokens, max_seq_len is {transform.max_seq_len}"
            if kind:
                line = {"index": bad.index, "where": bad.where, "kind": kind, "reason": reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    if good := [f for f in facts if not f.kind]:
        draw_lengths(
            [f.tokens for f in good],
            [f.visual_tokens for f in good],
            [size for f in good for size in f.images],
            out / "lengths.png",
            max_seq_len=transform.max_seq_len,
            max_pixels=transform.image_transform.max_pixels,
        )
