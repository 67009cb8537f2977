"""`tune-qwenvl COMMAND ...`: a table of commands; each of them has its own file.

    tune-qwenvl run finetune --config qwen2_5_vl/3B_lora dataset.source=data.json
    tune-qwenvl check data.json --checkpoint-dir /tmp/Qwen2.5-VL-3B-Instruct

Only the command that is asked for is imported. An error that the user can mend is printed as one line; any
other error keeps its traceback.
"""

import argparse
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.settings.keys import FINETUNE

PROGRAM = "tune-qwenvl"
PACKAGE = Path(__file__).resolve().parents[1]
DESCRIPTION = "torchtune's command line with the vision-language recipes and configs of torchtune_qwenvl."
EPILOG = """\
a first run, from the download to the answer:
  tune-qwenvl download Qwen/Qwen2.5-VL-3B-Instruct --output-dir /tmp/Qwen2.5-VL-3B-Instruct
  tune-qwenvl run finetune --config qwen2_5_vl/3B_lora dataset.source=data.json
  tune-qwenvl run generate checkpoint_dir=outputs/qwen2_5_vl_3B/model image=cat.jpg prompt="What is this?"

`tune-qwenvl COMMAND --help` explains a command.
"""


class Command(NamedTuple):
    """Where a command is and what it does. It is imported only when used: torchtune takes seconds to import.

    Attributes:
        module: imported when the command is used.
        name: its class there, which adds its own parser to argparse's subparsers.
        help: its line in `tune-qwenvl --help`.
    """

    module: str
    name: str
    help: str

    def add_to(self, commands: argparse._SubParsersAction) -> None:
        """Import the command and add its parser."""
        getattr(import_module(self.module), self.name)(commands)


OURS = "torchtune_qwenvl.cli"
COMMANDS = {
    "ls": Command(f"{OURS}.ls", "List", "List all recipes and configs."),
    "cp": Command(f"{OURS}.cp", "Copy", "Copy a recipe or config, to change it."),
    "show": Command(f"{OURS}.show", "Show", "Print a config with all its keys."),
    "validate": Command(f"{OURS}.validate", "Validate", "Check a config without running it."),
    "estimate": Command(f"{OURS}.estimate", "Estimate", "Compute memory and time on GPUs, without any."),
    "check": Command(f"{OURS}.check", "Check", "Read a dataset without training and report what is wrong."),
    "run": Command(f"{OURS}.run", "Run", "Run a recipe, in one process or many."),
    "chat": Command(f"{OURS}.chat.command", "Chat", "Talk to a model about images and videos."),
    "export": Command(f"{OURS}.export", "Export", "Write the merged model and the adapter of a run."),
    "embed": Command(f"{OURS}.embed", "Embed", "Encode a folder of images into an index for search."),
    "search": Command(f"{OURS}.search", "Search", "Find the images of an index that are most like an image."),
    "probe": Command(f"{OURS}.probe", "Probe", "Find the layer and pooling that suit your classes."),
    "download": Command("torchtune._cli.download", "Download", "Download a model from the Hugging Face Hub."),
}


# Arguments of commands that are lists of key=value: of a config, and how tokens are chosen.
PAIRS = ("overrides", "sampling")


def make_parser(name: str | None = None) -> argparse.ArgumentParser:
    """The command line: the arguments of the command `name`, and one line about each of the others.

    torchtune's commands say `tune-qwenvl` in their help, too.
    """
    parser = argparse.ArgumentParser(
        PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(func=lambda args: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    if name not in COMMANDS:
        for other, command in COMMANDS.items():
            commands.add_parser(other, help=command.help)
        return parser
    COMMANDS[name].add_to(commands)
    subparser = commands.choices[name]
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
        SystemExit: status 2 for a wrong command line, 1 for any other error.
    """
    if argv is not None:  # torchtune's `run` counts the words of sys.argv
        sys.argv = [PROGRAM, *argv]
    name = next(iter(sys.argv[1:]), "--help")
    parser = make_parser(name)
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
    """`parser.parse_args(argv)`, but key=value may come anywhere, and is short for --key value."""
    argv = _with_options(parser, argv)
    arguments, rest = parser.parse_known_args(argv)
    pairs = next((vars(arguments)[name] for name in PAIRS if name in arguments), None)
    if pairs is None or any(word.startswith("-") for word in rest):
        return parser.parse_args(argv)  # which says what is wrong
    pairs += rest
    return arguments


def _with_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """`workers=2` -> `--workers=2`, except for what is a key of the config that the command reads."""
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    command = commands.get(next(iter(argv), ""))
    names = {action.dest for action in command._actions} if command else set()
    if command is None or "recipe_args" in names:
        return list(argv)
    keys = FINETUNE if "overrides" in names else {}
    return [
        word if word.partition("=")[0] in keys else _option(word, command._option_string_actions)
        for word in argv
    ]


def _option(word: str, options: Mapping[str, argparse.Action]) -> str:
    key, equals, value = word.partition("=")
    action = options.get("--" + key.replace("_", "-"))
    if not equals or action is None:
        return word
    if action.nargs == 0:  # a switch
        return action.option_strings[-1] if value == "true" else word
    return f"{action.option_strings[-1]}={value}"


def is_for_users(error: ValueError) -> bool:
    """Whether this package raised the error. Its ValueErrors say what was expected and what to do."""
    # In a checkout, the recipes are next to the package instead of inside it.
    recipes = Path(str(import_module("torchtune_qwenvl.recipes").__file__)).parent
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return file.is_relative_to(PACKAGE) or file.is_relative_to(recipes)


if __name__ == "__main__":
    main()
