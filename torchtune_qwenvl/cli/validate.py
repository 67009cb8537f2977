"""`tune-qwenvl validate`: check a config, ours by name or file, torchtune's by file."""

import argparse
from pathlib import Path

from omegaconf import OmegaConf
from torchtune._cli.validate import Validate as TorchtuneValidate

from torchtune_qwenvl.settings.config import needed_keys, resolve, unset, unset_arguments
from torchtune_qwenvl.settings.exclusions import check_exclusions
from torchtune_qwenvl.settings.local_files import absent_files
from torchtune_qwenvl.settings.notes import notes

EPILOG = """\
examples:
  tune-qwenvl validate qwen2_5_vl/3B_lora dataset.source=data.json
  tune-qwenvl validate mine.yaml
"""


class Validate(TorchtuneValidate):
    """torchtune's command. For our configs it checks what a run checks before it loads anything."""

    def __init__(self, subparsers) -> None:
        super().__init__(subparsers)
        self._parser.usage = "tune validate CONFIG [key=value ...]"
        self._parser.epilog = EPILOG

    def _add_arguments(self) -> None:
        self._parser.add_argument("config", help="name of a packaged config, or a YAML file")
        self._parser.add_argument("overrides", nargs="*", metavar="key=value")

    def _validate_cmd(self, args: argparse.Namespace) -> None:
        # Configs of torchtune's recipes have a checkpointer, ours have none.
        if Path(args.config).is_file() and "checkpointer" in OmegaConf.load(args.config):
            return super()._validate_cmd(args)
        cfg = resolve(args.config, args.overrides)
        check_exclusions(cfg)
        print("Config is well-formed!")
        for absent in (*unset(cfg, *needed_keys(cfg)), *unset_arguments(cfg), *absent_files(cfg)):
            print(f"Before it can run: {absent}")
        for note in notes(cfg):
            print(f"Note: {note}")
