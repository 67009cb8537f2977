"""What a run that is resumed may change: each config key is honoured exactly, or refused by name.

Honoured: from the next step on, the run does what the new value says, and reads on at the first sample that
no step has seen. Refused: the value decided what is in the folder, or which samples have been seen.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Rule(Enum):
    """What becomes of a changed key."""

    HONOURED = "honoured"
    REFUSED = "refused"


def _rules(rule: Rule, keys: str) -> dict[str, Rule]:
    return dict.fromkeys(keys.split(), rule)


# Keys of finetune and train_vit. A key without a rule of its own has that of the key above it.
RULES: dict[str, Rule] = {
    **_rules(Rule.REFUSED, "recipe seed dtype model tokenizer dataset shuffle optimizer optimizer_in_bwd"),
    # train_vit's
    **_rules(Rule.REFUSED, "global_pool train last_n lora ema_decay val_share"),
    **_rules(Rule.HONOURED, "model.lora_dropout model.router_aux_loss_coef model.mtp_loss_weight"),
    **_rules(Rule.HONOURED, "lora.dropout"),
    # Places may move: what lies there is compared by its content.
    **_rules(Rule.HONOURED, "output_dir checkpoint_dir base_dir tokenizer.folder model.config model.folder"),
    **_rules(Rule.HONOURED, "dataset.source dataset.data_files dataset.image_root dataset.datasets.*.source"),
    **_rules(Rule.HONOURED, "dataset.datasets.*.data_files dataset.datasets.*.image_root device prepare"),
    **_rules(Rule.HONOURED, "dataset.on_bad_sample dataset.on_too_long"),
    **_rules(Rule.HONOURED, "dataset.url_timeout dataset.url_max_bytes"),
    # Which samples a batch holds, and how they are read
    **_rules(Rule.HONOURED, "batch_size gradient_accumulation_steps pack_to batch_tokens padding_free"),
    **_rules(Rule.HONOURED, "shuffle_buffer num_workers keep_lengths collate_fn on_bad_sample on_too_long"),
    **_rules(Rule.HONOURED, "cache_features feature_cache_dir feature_cache_gib"),
    **_rules(Rule.HONOURED, "train_transforms mixes mix_share label_smoothing"),
    # How it trains
    **_rules(Rule.HONOURED, "epochs max_steps_per_epoch loss clip_grad_norm learning_rates lr_scheduler"),
    **_rules(Rule.HONOURED, "head_lr layer_decay optimizer.lr optimizer.weight_decay optimizer.betas"),
    **_rules(Rule.HONOURED, "optimizer.eps optimizer.fused optimizer.foreach"),
    **_rules(
        Rule.HONOURED, "activation_checkpointing activation_offloading attention_backend compile float8"
    ),
    **_rules(Rule.HONOURED, "data_parallel_shard_degree data_parallel_replicate_degree"),
    # What is watched and written
    **_rules(Rule.HONOURED, "val_dataset val_transforms run_val_every_n_steps val_answers val_answer_tokens"),
    **_rules(Rule.HONOURED, "evaluate dry_run save_every_n_steps keep_last_n resume accept_changed_data"),
    **_rules(
        Rule.HONOURED, "merge_adapter export_dtype metric_logger log_every_n_steps log_samples on_nonfinite"
    ),
    **_rules(Rule.HONOURED, "device_peak_tflops profiler finish shown_predictions save_on_signal"),
}

# Keys that set the rates of parameters or their course.
RATES = ("optimizer.lr", "learning_rates", "lr_scheduler", "head_lr", "layer_decay")
# Changes of these are not worth a line at the start.
UNREMARKABLE = (
    *("output_dir", "resume", "metric_logger.log_dir", "profiler", "accept_changed_data"),
    *("feature_cache_dir", "feature_cache_gib"),
)


def rule_of(path: str) -> Rule:
    """The rule of a dotted key; a key that is not known, such as one of your own recipe, is refused."""
    steps = ["*" if step.isdigit() else step for step in path.split(".")]
    for end in range(len(steps), 0, -1):
        if (rule := RULES.get(".".join(steps[:end]))) is not None:
            return rule
    return Rule.REFUSED


def flattened(tree: Any, path: str = "") -> dict[str, Any]:
    """{dotted key: value} of the leaves of a config; empty containers are leaves."""
    children = (
        tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    )
    found: dict[str, Any] = {}
    for key, child in children:
        found |= flattened(child, f"{path}.{key}".lstrip("."))
    return found or ({path: tree} if path else {})


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (value before, value now)} of flattened settings; absent is None."""
    return {
        path: (old.get(path), new.get(path))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    }


def is_rate(path: str) -> bool:
    """Whether a key sets the rate of parameters or its course."""
    return any(path == rate or path.startswith(f"{rate}.") for rate in RATES)


def is_unremarkable(path: str) -> bool:
    """Whether nobody needs to read of a change of this key."""
    return any(path == key or path.startswith(f"{key}.") for key in UNREMARKABLE)
