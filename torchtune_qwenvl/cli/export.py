"""`tune-qwenvl export`: a merged model and an adapter out of a `step_N/` or an adapter, loaded again."""

import argparse
from pathlib import Path

from omegaconf import DictConfig
from torchtune._cli.subcommand import Subcommand

from torchtune_qwenvl.checkpoints.peft_export import ADAPTER_CONFIG
from torchtune_qwenvl.exporting.comparison import compare_adapter, compare_model, logits_of
from torchtune_qwenvl.exporting.export import write_folders
from torchtune_qwenvl.exporting.trained import Trained, from_adapter, from_step
from torchtune_qwenvl.json_files import read_json
from torchtune_qwenvl.models import load_transform
from torchtune_qwenvl.settings.config import require, resolve
from torchtune_qwenvl.training.resume import META

RUN_CONFIG = "torchtune_config.yaml"  # torchtune's loggers write it into output_dir
COMPARE = {"model": compare_model, "adapter": compare_adapter}
EPILOG = """\
examples:
  the model and the adapter of a run that did not come to its end:
    tune-qwenvl export outputs/qwen2_5_vl_3B/step_500
  the whole model out of an adapter, in bf16:
    tune-qwenvl export outputs/qwen2_5_vl_3B/adapter --out served --only model --dtype bf16

Each folder is loaded again. Its logits, on a prompt without an image and on one with, are compared in fp32
with the trained model's; one model at a time is in memory, 4 bytes for each parameter.
"""


class Export(Subcommand):
    """Writes and compares."""

    def __init__(self, subparsers) -> None:
        super().__init__()
        parser = subparsers.add_parser(
            "export",
            help="Write a merged model and an adapter out of a run, each verified by loading it again.",
            description="Write a merged model and a PEFT adapter out of a run's step_N folder or an adapter.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        add("folder", type=Path, help="step_N/ of a run, or an adapter/")
        add("overrides", nargs="*", metavar="key=value", help="keys of the run's config to change")
        add(
            "--out", metavar="DIR", type=Path, help="for model/ and adapter/; default: export/ next to FOLDER"
        )
        add("--only", choices=("model", "adapter"), help="write one of both")
        add("--dtype", choices=("bf16", "fp32"), help="of all weights; default: those of the checkpoint")
        add("--config", help=f"of the run; default: {RUN_CONFIG} next to FOLDER")
        add("--checkpoint-dir", metavar="DIR", type=Path, help="that training began from, if it has moved")
        add("--device", default="cpu", help="where logits are computed; default: cpu")
        add("--no-compare", action="store_true", help="compute no logits; headers are read back all the same")
        parser.set_defaults(func=self._export)

    def _export(self, args: argparse.Namespace) -> None:
        trained = find_trained(args)
        out = args.out or args.folder.absolute().parent / "export"
        parts = {"merged": args.only != "adapter", "adapter": args.only != "model"}
        written = write_folders(trained.state, trained.skeleton, trained.source, out, args.dtype, **parts)
        if args.no_compare:
            print("\n".join(f"{name:<9}{folder}" for name, folder in written.items()))
            return
        expected = logits_of(trained.model(args.device), load_transform(trained.source))
        for name, folder in written.items():
            said = COMPARE[name](folder, trained.source, expected, args.device)
            print(f"{name:<9}{folder}\n         {said}")


def find_trained(args: argparse.Namespace) -> Trained:
    """What the command line names.

    Raises:
        ValueError: the folder is neither, or what it began from is not known.
    """
    if (args.folder / META).is_file():
        return from_step(args.folder, config_of(args))
    if not (args.folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{args.folder}: expected a step_N folder of a run, with {META} in it, or an adapter, with "
            f"{ADAPTER_CONFIG}"
        )
    source = args.checkpoint_dir or Path(read_json(args.folder / ADAPTER_CONFIG)["base_model_name_or_path"])
    if not source.is_dir():
        raise ValueError(f"{args.folder} belongs to {source}, no folder here: give --checkpoint-dir DIR")
    return from_adapter(args.folder, source)


def config_of(args: argparse.Namespace) -> DictConfig:
    """The config of the run that wrote a `step_N/` folder."""
    path = args.folder.absolute().parent / RUN_CONFIG
    if args.config is None and not path.is_file():
        raise ValueError(f"no {path}: name the config that the run began with, --config NAME [key=value ...]")
    moved = [f"checkpoint_dir={args.checkpoint_dir}"] if args.checkpoint_dir else []
    cfg = resolve(args.config or str(path), [*args.overrides, *moved])
    require(cfg, "checkpoint_dir", "model")
    return cfg
