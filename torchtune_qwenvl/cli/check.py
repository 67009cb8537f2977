"""`tune-qwenvl check`: a dataset read without training; what is in it, and wrong with it."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchtune._cli.subcommand import Subcommand
from torchtune.config import instantiate

from torchtune_qwenvl.checking import Examiner, Facts, draw_sheet, read_facts, samples_of, summary
from torchtune_qwenvl.pictures.lengths import draw_lengths
from torchtune_qwenvl.settings.config import require, resolve

EPILOG = """\
examples:
  the data of a run, as it would read it:
    tune-qwenvl check --config qwen2_5_vl/3B_lora dataset.source=data.json tokenizer.max_seq_len=2048
  a file alone, with the tokenizer and image limits of a checkpoint:
    tune-qwenvl check data.jsonl --checkpoint-dir /tmp/Qwen2.5-VL-3B-Instruct dataset.image_root=images

The folder then holds report.txt (what is printed, every bad sample named), bad_samples.jsonl, lengths.png and
samples.png. The exit status is 1 where there are bad samples.
"""
SHEET = 8  # samples on the contact sheet


class Check(Subcommand):
    """Reads every sample as training would."""

    def __init__(self, subparsers) -> None:
        super().__init__()
        parser = subparsers.add_parser(
            "check",
            help="Read a dataset without training: what is in it, what is wrong with it.",
            description="Read every sample of a dataset as training would; say what is in it, and wrong.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "overrides", nargs="*", metavar="SOURCE | key=value", help="a data file; config keys"
        )
        parser.add_argument("--config", default="base", help="whose dataset, tokenizer and limits count")
        parser.add_argument("--checkpoint-dir", metavar="DIR", help="short for checkpoint_dir=DIR")
        parser.add_argument(
            "--out", metavar="DIR", type=Path, help="default: check/ in the config's output_dir"
        )
        parser.add_argument("--split", choices=("dataset", "val_dataset"), default="dataset")
        parser.add_argument(
            "--workers", type=int, metavar="N", help="processes that read; default: num_workers"
        )
        parser.add_argument(
            "--no-decode", action="store_true", help="read the headers of images only: faster"
        )
        parser.set_defaults(func=self._check)

    def _check(self, args: argparse.Namespace) -> None:
        cfg = resolve(args.config, overrides_of(args))
        require(cfg, "checkpoint_dir", args.split)
        for component in cfg.prepare:
            instantiate(component)
        transform = instantiate(cfg.tokenizer)
        dataset = instantiate(cfg[args.split], Examiner(transform, decode=not args.no_decode))
        workers = min(cfg.num_workers, os.cpu_count() or 1) if args.workers is None else args.workers
        facts = read_facts(dataset, workers, progress=True)
        out = args.out or Path(cfg.output_dir) / "check"
        write_report(facts, transform, out)
        # Once more, as training would see them: cut to max_seq_len, with the patches of their images.
        if drawn := samples_of(instantiate(cfg[args.split], transform), facts, SHEET):
            draw_sheet(drawn, transform, len(facts), out / "samples.png")
        print(f"{summary(facts, transform.max_seq_len)}\n\nreport, list of bad samples and pictures: {out}")
        if any(f.kind for f in facts):
            raise SystemExit(1)


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The config's overrides; a word without = is the data file.

    Raises:
        ValueError: two data files.
    """
    files = [word for word in args.overrides if "=" not in word or Path(word).is_file()]
    if len(files) > 1:
        raise ValueError(f"expected one data file, got {' and '.join(files)}: a list is dataset.source=[a,b]")
    keys = [word for word in args.overrides if word not in files]
    keys += [f"checkpoint_dir={args.checkpoint_dir}"] if args.checkpoint_dir else []
    return [*(f"{args.split}.source={file}" for file in files), *keys]


def write_report(facts: Sequence[Facts], transform: Any, out: Path) -> None:
    """Write report.txt, bad_samples.jsonl and lengths.png."""
    out.mkdir(parents=True, exist_ok=True)
    whole = summary(facts, transform.max_seq_len, shown=len(facts))
    (out / "report.txt").write_text(whole + "\n", encoding="utf-8")
    with (out / "bad_samples.jsonl").open("w", encoding="utf-8") as file:
        for bad in facts:
            if bad.kind:
                line = {"index": bad.index, "where": bad.where, "kind": bad.kind, "reason": bad.reason}
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
