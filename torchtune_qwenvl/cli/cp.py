"""`tune-qwenvl cp`: torchtune's command, but a config with includes is copied as one complete file."""

import argparse
from pathlib import Path

from omegaconf import OmegaConf
from torchtune._cli.cp import Copy as TorchtuneCopy
from torchtune._recipe_registry import get_all_recipes

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.cli.registry import recipe_names, register
from torchtune_qwenvl.settings.files import find_config, load_config, packaged_names

EPILOG = """\
examples:
  tune-qwenvl cp qwen2_5_vl/3B_lora mine.yaml     a config to change; run it with --config mine.yaml
  tune-qwenvl cp finetune my_finetune.py          the recipe to change
"""


class Copy(TorchtuneCopy):
    """torchtune's command."""

    def __init__(self, subparsers) -> None:
        register()
        super().__init__(subparsers)
        self._parser.epilog = EPILOG

    def _cp_cmd(self, args: argparse.Namespace) -> None:
        known = [*recipe_names(), *(config.name for recipe in get_all_recipes() for config in recipe.configs)]
        if args.file not in known:
            hint = nearest(args.file, known)
            self._parser.error(f"no recipe or config '{args.file}'.{hint} `tune-qwenvl ls` lists them.")
        to: Path = args.destination / Path(args.file).name if args.destination.is_dir() else args.destination
        args.destination = to.with_suffix(".yaml") if args.file in packaged_names() else to
        kept = args.no_clobber and args.destination.exists()
        super()._cp_cmd(args)
        if not kept and args.file in packaged_names():
            whole = standalone(args.file)
            if whole is not None:
                args.destination.write_text(whole, encoding="utf-8")


def standalone(name: str) -> str | None:
    """A packaged config with everything that it includes, as YAML; None if it includes nothing."""
    path = find_config(name)
    if "include" not in OmegaConf.load(path):
        return None
    head = f"# {name} as packaged. Other keys have base.yaml's defaults; `tune-qwenvl show` prints them.\n"
    return head + OmegaConf.to_yaml(OmegaConf.create(load_config(path)))
