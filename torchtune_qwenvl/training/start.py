"""From a command line to a finished run: what the `main` of every recipe does."""

import sys
from collections.abc import Callable, Sequence

from omegaconf import DictConfig
from torchtune.utils import get_logger

from torchtune_qwenvl.distributed import leave_world
from torchtune_qwenvl.settings.config import parse_arguments
from torchtune_qwenvl.training.recipe import Recipe
from torchtune_qwenvl.training.stopping import Signals, Stopped

log = get_logger("INFO")


def run_recipe(make: Callable[[DictConfig], Recipe], argv: Sequence[str] | None, name: str) -> None:
    """Set up, train and finish.

    Args:
        make: the recipe's class, or a function that makes it from a config.
        argv: `--config NAME [key=value ...]`; None takes the process's.
        name: the recipe whose configs these are.

    Raises:
        SystemExit: with 130 or 143, after Ctrl-C or SIGTERM.
        ValueError: what a user can mend.
    """
    cfg = parse_arguments(sys.argv[1:] if argv is None else argv, name)
    try:
        recipe = make(cfg)
        with Signals(forgiving=recipe.world.size > 1).caught() as recipe.signals:
            recipe.setup()
            if cfg.get("dry_run"):
                return recipe.dry_run()
            recipe.train()
            recipe.finish()
    except Stopped as stopped:
        if recipe.world.is_main:
            log.info(str(stopped))
        leave_world()
        sys.exit(stopped.exit_code)
