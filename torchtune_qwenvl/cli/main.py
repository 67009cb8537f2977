"""`tune-qwenvl COMMAND ...`: one parser, one small file per command.

    tune-qwenvl run finetune --config qwen2_5_vl/3B_lora dataset.source=data.json
    tune-qwenvl check data.json --checkpoint-dir /tmp/Qwen2.5-VL-3B-Instruct

An error that is the user's to mend is one line, without a traceback; any other keeps its traceback.
"""

import argparse
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from torchtune._cli.download import Download
from torchtune._cli.ls import List

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.cli.check import Check
from torchtune_qwenvl.cli.cp import Copy
from torchtune_qwenvl.cli.embed import Embed
from torchtune_qwenvl.cli.export import Export
from torchtune_qwenvl.cli.probe import Probe
from torchtune_qwenvl.cli.registry import RECIPES, register
from torchtune_qwenvl.cli.run import Run
from torchtune_qwenvl.cli.search import Search
from torchtune_qwenvl.cli.show import Show
from torchtune_qwenvl.cli.validate import Validate

PROGRAM = "tune-qwenvl"
PACKAGE = Path(__file__).resolve().parents[1]
DESCRIPTION = "torchtune's command line with the vision-language recipes and configs of torchtune_qwenvl."
EPILOG = """\
a first run, from the download to the answer:
  tune-qwenvl download Qwen/Qwen2.5-VL-3B-Instruct --output-dir /tmp/Qwen2.5-VL-3B-Instruct
  tune-qwenvl run finetune --config qwen2_5_vl/3B_lora dataset.source=data.json
  tune-qwenvl run generate checkpoint_dir=outputs/qwen2_5_vl_3B/model image=cat.jpg prompt="What is this?"

`tune-qwenvl COMMAND --help` says more about each.
"""
COMMANDS = {
    "ls": List,
    "cp": Copy,
    "show": Show,
    "validate": Validate,
    "check": Check,
    "run": Run,
    "export": Export,
    "embed": Embed,
    "search": Search,
    "probe": Probe,
    "download": Download,
}


def make_parser() -> argparse.ArgumentParser:
    """The whole command line; torchtune's commands speak of `tune-qwenvl` too."""
    parser = argparse.ArgumentParser(
        PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(func=lambda args: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS.values():
        command.create(commands)
    for name, subparser in commands.choices.items():
        subparser.prog = f"{PROGRAM} {name}"
        _rename(subparser, "usage", "epilog")
        for argument in subparser._actions:
            _rename(argument, "help")
    return parser


def _rename(holder: object, *texts: str) -> None:
    """`tune` -> `tune-qwenvl` in the help texts of torchtune's commands."""
    for name in texts:
        text = getattr(holder, name)
        setattr(holder, name, text and re.sub(r"\btune (?=\S)", f"{PROGRAM} ", text))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Raises:
        SystemExit: status 2 for a command line that is wrong, 1 for anything else that is wrong.
    """
    if argv is not None:  # torchtune's `run` counts the words of sys.argv
        sys.argv = [PROGRAM, *argv]
    register()
    parser = make_parser()
    name = next(iter(sys.argv[1:]), "--help")
    if not name.startswith("-") and name not in COMMANDS:
        parser.error(f"no command '{name}'.{nearest(name, COMMANDS)} There are {', '.join(COMMANDS)}.")
    arguments = parse(parser, sys.argv[1:])
    try:
        arguments.func(arguments)
    except ValueError as error:
        if not is_for_users(error):
            raise
        sys.exit(f"{PROGRAM} {name}: error: {error}")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """`parser.parse_args(argv)`, but key=value may stand anywhere among the options."""
    arguments, rest = parser.parse_known_args(argv)
    if not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest):
        return parser.parse_args(argv)  # which says what is wrong
    arguments.overrides += rest
    return arguments


def is_for_users(error: ValueError) -> bool:
    """Whether this package raised the error: its ValueErrors say what was expected and what to do."""
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return file.is_relative_to(PACKAGE) or file.is_relative_to(RECIPES)


if __name__ == "__main__":
    main()
