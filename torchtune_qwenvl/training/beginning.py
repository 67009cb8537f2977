"""A run whose `checkpoint_dir` is an adapter goes on training it."""

from omegaconf import DictConfig, open_dict
from torchtune.utils import get_logger, log_rank_zero

from torchtune_qwenvl.checkpoints.start import Start, find_start


def begin_from(cfg: DictConfig) -> Start:
    """Where a run begins; for an adapter, `cfg` is changed to what it says.

    `checkpoint_dir` becomes its base model, so that tokenizer and export use that, and `model` gets the
    adapter's parts, rank, alpha and targets. What differs from the config is printed.

    Args:
        cfg: the run's config, of which `checkpoint_dir`, `base_dir` and `model` are read.

    Raises:
        ValueError: as `find_start`.
    """
    start = find_start(cfg.checkpoint_dir, cfg.get("base_dir"))
    if start.adapter is None:
        return start
    changed = []
    with open_dict(cfg):
        cfg.checkpoint_dir, cfg.base_dir = str(start.checkpoint), None
        for name, value in start.builder_arguments().items():
            if (before := cfg.model.get(name)) != value and before is not None:
                changed.append(f"{name} {before} -> {value}")
            cfg.model[name] = value
    differs = f"; instead of the config: {', '.join(changed)}" if changed else ""
    log_rank_zero(
        get_logger("INFO"), f"goes on training the adapter {start.adapter} of {start.checkpoint}{differs}"
    )
    return start
