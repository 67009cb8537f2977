"""Summarise a dataset's facts as text: counts, lengths, images, duplicates, bad samples by kind."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from torchtune_qwenvl.checking.facts import Facts
from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.notes import Notes
from torchtune_qwenvl.transforms.chat.text_tokens import ADVICE

SHOWN = 3  # bad samples shown of each kind, and duplicates
COLUMNS = ("min", "median", "p95", "max", "sum")


def summary(facts: Sequence[Facts], max_seq_len: int | None = None, shown: int = SHOWN) -> str:
    """The summary as lines of text.

    Args:
        facts: the facts of every sample.
        max_seq_len: limit of the transform.
        shown: how many bad samples of each kind, and how many duplicates, are listed.
    """
    good, bad = [f for f in facts if not f.kind], [f for f in facts if f.kind]
    long = [f for f in good if f.too_long]
    headline = f"{counted(len(facts), 'sample')}: {len(good) - len(long):,} good, {len(bad):,} bad"
    lines = [f"{headline}, {len(long):,} too long" if long else headline]
    if good:
        lines += ["", *_table(good), "", *_images(good), *_cut(good, max_seq_len), *_repeated(good, shown)]
        lines += [*_spelled(good), *_notes(good)]
    if bad:
        lines += ["", *_bad(bad, shown)]
    return "\n".join(lines)


def by_kind(bad: Sequence[Facts]) -> list[tuple[str, list[Facts]]]:
    """Bad samples grouped by the kind of error, the most frequent kind first."""
    ordered = sorted(bad, key=lambda facts: (facts.kind, facts.index))
    groups = [(kind, list(group)) for kind, group in groupby(ordered, key=lambda facts: facts.kind)]
    return sorted(groups, key=lambda group: -len(group[1]))


def _table(good: Sequence[Facts]) -> list[str]:
    rows = {
        "tokens": [f.tokens for f in good],
        "  visual": [f.visual_tokens for f in good],
        "  trained on": [f.trained_tokens for f in good],
        "images": [len(f.images) for f in good],
        "videos": [f.videos for f in good],
    }
    lines = [f"{'per sample':<14}" + "".join(f"{name:>12}" for name in COLUMNS)]
    for name, values in rows.items():
        if any(values):
            figures = (min(values), np.median(values), np.percentile(values, 95), max(values), sum(values))
            lines.append(f"{name:<14}" + "".join(f"{int(figure):>12,}" for figure in figures))
    return lines


def _images(good: Sequence[Facts]) -> list[str]:
    sizes = [size for facts in good for size in facts.images]
    if not sizes:
        return ["no images"]
    sizes.sort(key=lambda size: size[0] * size[1])
    smallest, median, largest = (f"{h} x {w}" for h, w in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    return [f"images, height x width: smallest {smallest}, median {median}, largest {largest}"]


def _cut(good: Sequence[Facts], max_seq_len: int | None) -> list[str]:
    if max_seq_len is None:
        return ["max_seq_len is not set: no sample is cut"]
    left_out = [f for f in good if not f.kept_tokens]
    cut = [f for f in good if 0 < f.kept_tokens < f.tokens]
    lost = sum(f.tokens - f.kept_tokens for f in good)
    if not lost:
        return [f"max_seq_len {max_seq_len:,}: every sample fits"]
    share = lost / sum(f.tokens for f in good)
    return [
        f"max_seq_len {max_seq_len:,}: {counted(len(cut), 'sample')} cut at the end, {len(left_out):,} "
        f"too long for it; {counted(lost, 'token')} lost, {share:.1%} of all"
    ]


def _notes(good: Sequence[Facts]) -> list[str]:
    notes = Notes()
    for facts in good:
        notes.add(facts.notes, facts.where)
    return [f"warning: {line}" for line in notes.lines()]


def _repeated(good: Sequence[Facts], shown: int) -> list[str]:
    first: dict[bytes, int] = {}
    pairs = [(f.index, n) for f in good if (n := first.setdefault(f.fingerprint, f.index)) != f.index]
    if not pairs:
        return []
    named = ", ".join(f"{again} = {before}" for again, before in pairs[:shown])
    more = ", …" if len(pairs) > shown else ""
    return [f"warning: samples that repeat an earlier one word for word: {len(pairs):,} ({named}{more})"]


def _spelled(good: Sequence[Facts]) -> list[str]:
    samples = [f for f in good if f.spelled]
    if not samples:
        return []
    names = ", ".join(dict.fromkeys(name for f in samples for name in f.spelled))
    said = f"text spells {names}, which is encoded as letters, in samples: {len(samples):,}"
    return [f"warning: {said}; {ADVICE}"]


def _bad(bad: Sequence[Facts], shown: int) -> list[str]:
    groups = by_kind(bad)
    lines = [f"bad samples, {counted(len(groups), 'kind')}"]
    for kind, group in groups:
        if len(group) == 1:
            lines += ["", f"{1:>6}  {group[0].where}: {group[0].reason}"]
            continue
        lines += ["", f"{len(group):>6,}  {kind}"]
        lines += [f"        {facts.where}: {facts.reason}" for facts in group[:shown]]
        if len(group) > shown:
            lines.append(f"        … and {len(group) - shown:,} more")
    return lines
