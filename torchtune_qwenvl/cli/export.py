"""`tune-qwenvl export`: write the merged model and the adapter of a run, and verify them."""

import argparse
from pathlib import Path

RUN_CONFIG = "torchtune_config.yaml"  # torchtune's loggers write it into output_dir
EPILOG = """\
examples:
  the model and the adapter of a run that was stopped:
    tune-qwenvl export outputs/qwen2_5_vl_3B/step_500
  the merged model of an adapter, in bf16:
    tune-qwenvl export outputs/qwen2_5_vl_3B/adapter --out served --only model --dtype bf16
  the vision encoder alone, of a run or of any checkpoint:
    tune-qwenvl export /tmp/Qwen2.5-VL-3B-Instruct --vision-only --out encoder

Each folder is loaded again, and its logits are compared in fp32 with those of the trained model, for a prompt
without an image and one with an image. Only one model is in memory at a time, 4 bytes per parameter.
"""


class Export:
    """Writes and compares."""

    def __init__(self, subparsers) -> None:
        parser = subparsers.add_parser(
            "export",
            description="Write the merged model and the PEFT adapter of a step_N folder or of an adapter.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        add("folder", type=Path, help="step_N/ of a run, or adapter/")
        add("overrides", nargs="*", metavar="key=value", help="keys of the run's config to change")
        add(
            "--out", metavar="DIR", type=Path, help="for model/ and adapter/; default: export/ next to FOLDER"
        )
        add(
            "--vision-only",
            action="store_true",
            help="write the vision encoder alone; FOLDER may be a checkpoint",
        )
        add("--only", choices=("model", "adapter"), help="write only this one")
        add("--dtype", choices=("bf16", "fp32"), help="of all weights; default: those of the checkpoint")
        add("--config", help=f"of the run; default: {RUN_CONFIG} next to FOLDER")
        add(
            "--checkpoint-dir",
            metavar="DIR",
            type=Path,
            help="the checkpoint that training started from, if it has moved",
        )
        add("--device", default="cpu", help="where logits are computed; default: cpu")
        add("--no-compare", action="store_true", help="compare no logits; only read the written headers")
        parser.set_defaults(func=self._export)

    def _export(self, args: argparse.Namespace) -> None:
        # Imported here, so that --help answers at once.
        from torchtune_qwenvl.exporting.comparison import compare_adapter, compare_model, logits_of
        from torchtune_qwenvl.exporting.encoder import export_encoder
        from torchtune_qwenvl.exporting.export import write_folders
        from torchtune_qwenvl.exporting.source import find_trained
        from torchtune_qwenvl.models import load_transform

        config = args.config or args.folder.absolute().parent / RUN_CONFIG
        where = {"overrides": args.overrides, "checkpoint_dir": args.checkpoint_dir}
        if args.vision_only:
            encoder = args.out or args.folder.absolute().parent / "encoder"
            return print(export_encoder(args.folder, encoder, config=str(config), dtype=args.dtype, **where))
        trained = find_trained(args.folder, str(config), **where)
        out = args.out or args.folder.absolute().parent / "export"
        parts = {"merged": args.only != "adapter", "adapter": args.only != "model"}
        written = write_folders(trained.state, trained.skeleton, trained.source, out, args.dtype, **parts)
        if args.no_compare:
            print("\n".join(f"{name:<9}{folder}" for name, folder in written.items()))
            return
        expected = logits_of(trained.model(args.device), load_transform(trained.source))
        compare = {"model": compare_model, "adapter": compare_adapter}
        for name, folder in written.items():
            said = compare[name](folder, trained.source, expected, args.device)
            print(f"{name:<9}{folder}\n         {said}")
