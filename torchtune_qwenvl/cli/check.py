"""`tune-qwenvl check`: read a dataset without training and report what it contains and what is wrong."""

import argparse
import os
from pathlib import Path

EPILOG = """\
examples:
  the data of a run, as it would read it:
    tune-qwenvl check --config qwen2_5_vl/3B_lora dataset.source=data.json tokenizer.max_seq_len=2048
  a single file, with the tokenizer and image limits of a checkpoint:
    tune-qwenvl check data.jsonl --checkpoint-dir /tmp/Qwen2.5-VL-3B-Instruct dataset.image_root=images

The output folder gets report.txt (what is printed, with the name of every bad sample), bad_samples.jsonl,
lengths.png and samples.png. The exit status is 1 if there are bad samples, or samples that
max_seq_len cannot take.
"""
SHEET = 8  # samples on the contact sheet


class Check:
    """Reads every sample as training would."""

    def __init__(self, subparsers) -> None:
        parser = subparsers.add_parser(
            "check",
            description="Read every sample of a dataset as training would, and report what is wrong with it.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "overrides", nargs="*", metavar="SOURCE | key=value", help="a data file; config keys"
        )
        parser.add_argument(
            "--config", default="base", help="where dataset, tokenizer and limits are taken from"
        )
        parser.add_argument("--checkpoint-dir", metavar="DIR", help="short for checkpoint_dir=DIR")
        parser.add_argument(
            "--out", metavar="DIR", type=Path, help="default: check/ in the config's output_dir"
        )
        parser.add_argument("--split", choices=("dataset", "val_dataset"), default="dataset")
        parser.add_argument(
            "--workers", type=int, metavar="N", help="processes that read; default: num_workers"
        )
        parser.add_argument(
            "--no-decode", action="store_true", help="only read the headers of images: faster"
        )
        parser.set_defaults(func=self._check)

    def _check(self, args: argparse.Namespace) -> None:
        # Imported here, so that --help answers at once.
        from torchtune.config import instantiate

        from torchtune_qwenvl.checking import (
            Examiner,
            draw_sheet,
            read_facts,
            samples_of,
            summary,
            write_report,
        )
        from torchtune_qwenvl.settings.config import require, resolve

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
        # Read again as training would see them: cut to max_seq_len, with the patches of their images.
        if drawn := samples_of(instantiate(cfg[args.split], transform), facts, SHEET):
            draw_sheet(drawn, transform, len(facts), out / "samples.png")
        print(f"{summary(facts, transform.max_seq_len)}\n\nreport, list of bad samples and pictures: {out}")
        if any(f.kind or f.too_long for f in facts):
            raise SystemExit(1)


def overrides_of(args: argparse.Namespace) -> list[str]:
    """Overrides of the config; a word without = is the data file.

    Raises:
        ValueError: two data files.
    """
    files = [word for word in args.overrides if "=" not in word or Path(word).is_file()]
    if len(files) > 1:
        raise ValueError(f"expected one data file, got {' and '.join(files)}: a list is dataset.source=[a,b]")
    keys = [word for word in args.overrides if word not in files]
    keys += [f"checkpoint_dir={args.checkpoint_dir}"] if args.checkpoint_dir else []
    return [*(f"{args.split}.source={file}" for file in files), *keys]
