"""`tune-qwenvl run`: torchtune's command, but it checks names and config before it starts any process.

Otherwise every process loads torch first, and each of them prints a traceback for a misspelt key.
"""

import argparse
import os
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torchtune._cli.run import Run as TorchtuneRun

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.cli.registry import RECIPES, WITHOUT_CONFIG, recipe_names, register
from torchtune_qwenvl.settings.config import parse_arguments
from torchtune_qwenvl.settings.help import help_text
from torchtune_qwenvl.settings.recipes import RECIPES as WITH_CONFIG

EPILOG = """\
examples:
  one process:
    tune-qwenvl run finetune --config qwen2_5_vl/3B_lora dataset.source=data.json
  eight GPUs; the arguments of torchrun come before the recipe:
    tune-qwenvl run --nproc_per_node 8 finetune --config qwen2_5_vl/7B_full dataset.source=data.json
  continue a run that was interrupted:
    tune-qwenvl run finetune --config qwen2_5_vl/3B_lora dataset.source=data.json resume=true
  your own config, your own recipe, and torchtune's recipes:
    tune-qwenvl run finetune --config my.yaml
    tune-qwenvl run my_recipe.py --config my.yaml
    tune-qwenvl run lora_finetune_single_device --config stock.yaml

`tune-qwenvl run RECIPE --help` explains every key of finetune, train_vit or generate. `tune-qwenvl ls`
lists recipes and configs, `tune-qwenvl show NAME` prints every key of a config.
"""


class Run(TorchtuneRun):
    """torchtune's command. A recipe is one of ours, one of torchtune's, or a file."""

    def __init__(self, subparsers) -> None:
        register()
        super().__init__(subparsers)
        self._parser.usage = "tune run [TORCHRUN-OPTIONS] RECIPE --config CONFIG [key=value ...]"
        self._parser.description = "Run a recipe, in one process or, with torchrun's arguments, in many."
        self._parser.epilog = EPILOG

    def _run_cmd(self, args: argparse.Namespace) -> None:
        known = recipe_names()
        if args.recipe not in known and not any(mark in args.recipe for mark in "/."):
            hint = nearest(args.recipe, known)
            self._parser.error(f"no recipe '{args.recipe}'.{hint} `tune-qwenvl ls` lists them.")
        if args.recipe in WITHOUT_CONFIG and {"--help", "-h"} & set(args.recipe_args):
            return print(help_text(args.recipe))
        if args.recipe in WITHOUT_CONFIG and "--config" not in args.recipe_args:
            args.recipe = RECIPES / f"{args.recipe}.py"
            return self._run_single_device(args, is_builtin=True)
        if args.recipe in WITH_CONFIG:
            parse_arguments(args.recipe_args, args.recipe)
            # As a module of the package, so that the package is imported before torchtune in every process.
            args.recipe = f"torchtune_qwenvl/recipes/{args.recipe}.py"
        elif Path(args.recipe).is_absolute():
            args.recipe = _as_module(Path(args.recipe))
        try:
            super()._run_cmd(args)
        except SignalException as stopped:  # torchrun's, once its processes have ended
            sys.exit(128 + stopped.sigval)


def _as_module(recipe: Path) -> str:
    """A recipe's path as torchtune takes it, relative to a folder that every process imports from."""
    if not recipe.is_file():
        raise ValueError(f"no recipe {recipe}: expected a Python file")
    folders = [str(recipe.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)  # for the processes that torchrun starts
    sys.path.insert(0, str(recipe.parent))
    return recipe.name
