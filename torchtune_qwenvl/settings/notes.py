"""Settings that are allowed and do less, or something else, than their names promise: said at the start."""

from omegaconf import DictConfig

_PARTS = ("encoder", "fusion", "decoder")


def notes(cfg: DictConfig, total_steps: int | None = None) -> list[str]:
    """One sentence for each of these settings in a config, as `validate` and a run print them.

    Args:
        cfg: of any recipe.
        total_steps: optimizer steps of the run; None: as far as the config alone says.
    """
    return [*_of_parts(cfg), *_of_warmup(cfg, total_steps or _planned(cfg))]


def _of_parts(cfg: DictConfig) -> list[str]:
    said = []
    for part in _PARTS:
        name = f"{part}_trainable"
        mode = (cfg.model or {}).get(name)
        if isinstance(mode, bool):
            said.append(f"model.{name}={str(mode).lower()} means '{'full' if mode else 'frozen'}'")
        rate = cfg.get("learning_rates", {}).get(part)
        if rate is not None and mode in (False, "frozen"):
            said.append(f"learning_rates.{part}={rate:g} changes nothing, since model.{name} is 'frozen'")
    return said


def _of_warmup(cfg: DictConfig, steps: int | None) -> list[str]:
    warmup = (cfg.lr_scheduler or {}).get("num_warmup_steps")
    if warmup is None or steps is None or warmup < steps:
        return []
    return [
        f"lr_scheduler.num_warmup_steps={warmup} is not less than the run's {steps} steps: the learning rate "
        "never reaches what optimizer.lr or learning_rates say"
    ]


def _planned(cfg: DictConfig) -> int | None:
    """The most steps that the config allows; None if only the data says how many there are."""
    return cfg.max_steps_per_epoch and cfg.max_steps_per_epoch * cfg.epochs
