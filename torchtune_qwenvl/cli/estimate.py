"""`tune-qwenvl estimate`: memory and time of a config on GPUs that need not be there."""

import argparse

EPILOG = """\
examples:
  does a full fine-tuning of 7B fit on eight GPUs, and how fast would it be:
    tune-qwenvl estimate qwen2_5_vl/7B_full --gpus 8 --gpu h100
  with other settings, and with text only:
    tune-qwenvl estimate qwen2_5_vl/7B_lora pack_to=16384 activation_checkpointing.decoder=0.5 --visual 0

Nothing is run and no checkpoint is needed: a published size is known by its builder. If checkpoint_dir is
there, its config.json counts. Memory is that of the fullest moment of a step; time is a roofline. The exit
status is 1 if it does not fit. `dry_run=true` of the recipe measures both on the GPU itself.
"""


class Estimate:
    """Prints memory and time."""

    def __init__(self, subparsers) -> None:
        parser = subparsers.add_parser(
            "estimate",
            description="Compute memory and time of a training step on GPUs, without any.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        add("config", help="name of a packaged config, or a YAML file")
        add("overrides", nargs="*", metavar="key=value", help="change a key; ~key removes it")
        add("--gpus", type=int, default=1, metavar="N", help="GPUs that share the parameters; default: 1")
        add("--gpu", default="h100", metavar="NAME", help="h100, h200, b200, a100, a100-40, l40s, ...")
        add("--tokens-per-sample", type=int, metavar="N", help="of a conversation; default: 1024")
        add("--visual", type=float, metavar="SHARE", help="of the tokens; default: 0.47")
        add("--labelled", type=float, metavar="SHARE", help="of the tokens; default: 0.25")
        parser.set_defaults(func=self._estimate)

    def _estimate(self, args: argparse.Namespace) -> None:
        # Imported here, so that --help answers at once.
        from torchtune_qwenvl.estimating.estimate import estimate
        from torchtune_qwenvl.estimating.report import advice, report, with_defaults
        from torchtune_qwenvl.estimating.workload import Mix
        from torchtune_qwenvl.settings.config import resolve

        cfg = resolve(args.config, args.overrides)
        mix = with_defaults(Mix(), tokens=args.tokens_per_sample, visual=args.visual, labelled=args.labelled)
        found = estimate(cfg, args.gpus, args.gpu, mix)
        print(report(f"{args.config} on {args.gpus} x {args.gpu}", found))
        if cfg.float8 is not None:
            print("  float8 is counted as bf16, so it would be faster than this")
        if words := advice(cfg, found, args.gpu, mix):
            print(f"\n{words}")
        if not found.fits:
            raise SystemExit(1)
