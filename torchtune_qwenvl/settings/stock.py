"""Convert a config for torchtune's own `full_finetune_*` and `lora_finetune_*` recipes."""

import inspect
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from torchtune_qwenvl.settings.checks import find_component
from torchtune_qwenvl.settings.datasets import COMPONENT
from torchtune_qwenvl.settings.recipes import DEFAULT, check_recipe
from torchtune_qwenvl.transforms.processor_settings import image_statistics


def for_stock_recipe(cfg: DictConfig) -> DictConfig:
    """The keys that torchtune's `full_finetune_*` and `lora_finetune_*` recipes need.

    They have one learning rate and one checkpointing switch for the whole model, so the decoder's rate is
    used. They have no validation, `prepare` and `finish`; these keys are left out.

    Raises:
        ValueError: a config of another recipe than `finetune`, or one whose model takes what is only in
            checkpoint_dir, where that is not there.
    """
    check_recipe(cfg, DEFAULT)
    ours = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(ours, dict)
    stock = {key: ours[key] for key in _SHARED_WITH_STOCK}
    stock["model"] = _whole_model(ours["model"], ours["checkpoint_dir"])
    stock["optimizer"] = {"lr": ours["learning_rates"]["decoder"], **ours["optimizer"]}
    if ours["pack_to"] is not None:  # torchtune's recipes do not pack: as many single samples per step
        stock["gradient_accumulation_steps"] *= max(1, ours["pack_to"] // TYPICAL_SAMPLE)
    stock["compile"] = bool(ours["compile"])
    stock["enable_activation_checkpointing"] = any(ours["activation_checkpointing"].values())
    stock["enable_activation_offloading"] = ours["activation_offloading"]
    stock["checkpointer"] = {
        COMPONENT: "torchtune_qwenvl.training.checkpointer.FolderCheckpointer",
        "checkpoint_dir": ours["checkpoint_dir"],
        "output_dir": ours["output_dir"],
        "model_type": None,  # the recipes read it if they checkpoint activations
    }
    if ours["loss"] is not None:
        raise ValueError(
            "Config key 'loss': torchtune's recipes pass other arguments to a loss; leave it out for --stock"
        )
    stock["collate_fn"] = ours["collate_fn"]
    stock["loss"] = {COMPONENT: "torchtune.modules.loss.CEWithChunkedOutputLoss"}
    switched_off = ("resume_from_checkpoint", "log_peak_memory_stats", "save_adapter_weights_only")
    stock |= dict.fromkeys(switched_off, False)
    return OmegaConf.create(stock)


def _whole_model(node: dict[str, Any] | None, checkpoint_dir: str | None) -> dict[str, Any]:
    """A model's node with all that our recipe adds when it builds the model, and the stock recipes do not.

    These are mean and standard deviation of images, from the folder, and the LoRA keys that the stock LoRA
    recipes read.
    """
    if node is None:
        raise ValueError("Config key 'model' is not set: give model=any or a builder.")
    takes = inspect.signature(find_component("model", node[COMPONENT])).parameters
    whole = dict(node)
    if "image_mean" in takes and takes["image_mean"].default is None and "image_mean" not in node:
        found = image_statistics(checkpoint_dir) if checkpoint_dir and Path(checkpoint_dir).is_dir() else {}
        if not found:
            raise ValueError(
                f"Config key 'model.image_mean': {node[COMPONENT]} gets mean and deviation of images from "
                f"checkpoint_dir, and {checkpoint_dir!r} has none. Download the checkpoint, or give both."
            )
        whole |= found
    if "lora" in node.values():
        names = ("lora_attn_modules", "apply_lora_to_mlp")
        defaults = {name: takes[name].default for name in names if name in takes}
        whole = {**{name: _plain(default) for name, default in defaults.items()}, **whole}
    return whole


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


TYPICAL_SAMPLE = 1024  # tokens of a conversation with an image
_SHARED_WITH_STOCK = (
    *("output_dir", "seed", "device", "dtype", "model", "tokenizer", "dataset", "shuffle", "batch_size"),
    *("gradient_accumulation_steps", "epochs", "max_steps_per_epoch", "clip_grad_norm", "lr_scheduler"),
    *("metric_logger", "compile", "optimizer_in_bwd", "profiler"),
)
