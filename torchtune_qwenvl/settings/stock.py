"""Convert a config for torchtune's own `full_finetune_*` and `lora_finetune_*` recipes."""

from omegaconf import DictConfig, OmegaConf

from torchtune_qwenvl.settings.datasets import COMPONENT
from torchtune_qwenvl.settings.recipes import DEFAULT, check_recipe


def for_stock_recipe(cfg: DictConfig) -> DictConfig:
    """The keys that torchtune's `full_finetune_*` and `lora_finetune_*` recipes need.

    They have one learning rate and one checkpointing switch for the whole model, so the decoder's rate is
    used. They have no validation, `prepare` and `finish`; these keys are left out.

    Raises:
        ValueError: a config of another recipe than `finetune`.
    """
    check_recipe(cfg, DEFAULT)
    ours = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(ours, dict)
    stock = {key: ours[key] for key in _SHARED_WITH_STOCK}
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


TYPICAL_SAMPLE = 1024  # tokens of a conversation with an image
_SHARED_WITH_STOCK = (
    *("output_dir", "seed", "device", "dtype", "model", "tokenizer", "dataset", "shuffle", "batch_size"),
    *("gradient_accumulation_steps", "epochs", "max_steps_per_epoch", "clip_grad_norm", "lr_scheduler"),
    *("metric_logger", "compile", "optimizer_in_bwd", "profiler"),
)
