"""`tune-qwenvl show`: a config as it would run, with what it includes, defaults and overrides."""

import argparse

from torchtune._cli.subcommand import Subcommand

from torchtune_qwenvl.settings.config import main as print_config

EPILOG = """\
examples:
  tune-qwenvl show qwen2_5_vl/3B_lora
  tune-qwenvl show mine.yaml batch_size=4 optimizer=torch.optim.SGD
  tune-qwenvl show qwen2_5_vl/7B_full --stock > stock.yaml
"""


class Show(Subcommand):
    """Prints YAML."""

    def __init__(self, subparsers) -> None:
        super().__init__()
        parser = subparsers.add_parser(
            "show",
            help="Print a config fully resolved.",
            description="Print every key of a config as the recipe would see it.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("config", help="name of a packaged config, or a YAML file")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="~key removes one")
        parser.add_argument("--stock", action="store_true", help="in the form of torchtune's own recipes")
        parser.set_defaults(func=self._show)

    def _show(self, args: argparse.Namespace) -> None:
        print_config([args.config, *args.overrides, *["--stock"] * args.stock])
