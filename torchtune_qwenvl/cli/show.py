"""`tune-qwenvl show`: print a config as it would run: with its includes, defaults and overrides."""

import argparse

EPILOG = """\
examples:
  tune-qwenvl show qwen2_5_vl/3B_lora
  tune-qwenvl show mine.yaml batch_size=4 optimizer=torch.optim.SGD
  tune-qwenvl show qwen2_5_vl/7B_full --stock > stock.yaml
"""


class Show:
    """Prints YAML."""

    def __init__(self, subparsers) -> None:
        parser = subparsers.add_parser(
            "show",
            description="Print every key of a config as the recipe would see it.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("config", help="name of a packaged config, or a YAML file")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key; ~key removes it")
        parser.add_argument("--stock", action="store_true", help="in the form that torchtune's recipes take")
        parser.set_defaults(func=self._show)

    def _show(self, args: argparse.Namespace) -> None:
        from torchtune_qwenvl.settings.config import main as print_config  # brings torchtune

        print_config([args.config, *args.overrides, *["--stock"] * args.stock])
