"""Odd values for every key of the base configs, and which of them are taken."""

from omegaconf import OmegaConf

from torchtune_qwenvl.settings.files import PACKAGED

ODD = (
    *("abc", "-1", "0", "1.5", "[1,2]", "{a: 1}", "null", "true", "1e30", "''"),
    *("-5", "999999999", "nan", "[]", "'3'", ".inf", "2", "no", "1_000", "0x10"),
)
INTS = {"999999999", "2", "1_000", "0x10"}
NUMBERS = INTS | {"1.5", "1e30"}
TEXTS = {"abc", "nan", "'3'"}
BOOLS = {"true", "no"}
NULL = {"null"}
NONE, EMPTY, ZERO = frozenset[str](), frozenset({"[]"}), frozenset({"0"})
# What is taken of ODD, written down by hand. A component's name alone is no component; only `dataset: []` is
# read as a mix, and refused.
TAKEN: dict[str, set[str] | frozenset[str]] = {
    **dict.fromkeys(("output_dir", "collate_fn", "metric_logger.log_dir", "profiler.output_dir"), TEXTS),
    **dict.fromkeys(("checkpoint_dir", "base_dir", "tokenizer.folder"), TEXTS | NULL),
    **dict.fromkeys(("recipe", "dtype", "tokenizer.dtype", "train"), NONE),
    **dict.fromkeys(("on_bad_sample", "on_too_long", "on_nonfinite"), NONE),
    **dict.fromkeys(("device", "export_dtype", "model", "dataset", "val_dataset", "loss"), NULL),
    **dict.fromkeys(("lr_scheduler", "global_pool"), NULL),
    **dict.fromkeys(("tokenizer", "optimizer", "metric_logger", "profiler"), NONE),
    **dict.fromkeys(("learning_rates", "activation_checkpointing"), NONE),
    **dict.fromkeys(("prepare", "evaluate", "finish", "train_transforms", "val_transforms", "mixes"), EMPTY),
    **dict.fromkeys(("seed", "shown_predictions"), INTS | {"0"}),
    **dict.fromkeys(("num_workers", "val_answers"), INTS - {"999999999"} | {"0"}),
    **dict.fromkeys(("epochs", "val_answer_tokens"), INTS - {"999999999"}),
    **dict.fromkeys(
        ("shuffle_buffer", "batch_size", "gradient_accumulation_steps", "log_every_n_steps"), INTS
    ),
    "last_n": INTS,
    **dict.fromkeys(("pack_to", "batch_tokens", "run_val_every_n_steps", "max_steps_per_epoch"), INTS | NULL),
    **dict.fromkeys(("save_every_n_steps", "keep_last_n", "tokenizer.max_seq_len"), INTS | NULL),
    **dict.fromkeys(("tokenizer.max_pixels", "tokenizer.max_frames"), INTS | NULL),
    **dict.fromkeys(("tokenizer.video_max_pixels", "tokenizer.video_total_pixels"), INTS | NULL),
    **dict.fromkeys(("tokenizer.fps", "clip_grad_norm", "device_peak_tflops", "head_lr"), NUMBERS | NULL),
    **{f"learning_rates.{part}": NUMBERS | NULL for part in ("encoder", "fusion", "decoder")},
    "optimizer.lr": NUMBERS,
    "optimizer.weight_decay": NUMBERS | {"0"},
    **dict.fromkeys(("shuffle", "padding_free", "keep_lengths", "activation_offloading"), BOOLS),
    **dict.fromkeys(("optimizer_in_bwd", "dry_run", "merge_adapter", "log_samples", "save_on_signal"), BOOLS),
    **{f"activation_checkpointing.{part}": BOOLS | {"0"} for part in ("encoder", "decoder")},
    "compile": BOOLS | NULL,
    "attention_backend": NONE,
    "float8": NULL,
    "resume": BOOLS | TEXTS,
    "accept_changed_data": BOOLS,
    "tokenizer.text_tokens": TEXTS | EMPTY,
    **dict.fromkeys(("tokenizer.enable_thinking", "optimizer.fused"), BOOLS | NULL),
    **{
        f"profiler.{name}": BOOLS
        for name in (
            *("enabled", "cpu", "cuda", "xpu", "profile_memory", "with_stack", "record_shapes", "with_flops"),
        )
    },
    **{f"profiler.{name}": INTS | {"0"} for name in ("wait_steps", "warmup_steps", "num_cycles")},
    "profiler.active_steps": INTS,
    # Arguments that base.yaml does not list.
    **{f"model.{part}_trainable": BOOLS for part in ("encoder", "fusion", "decoder")},
    **{f"model.{name}": BOOLS for name in ("apply_lora_to_mlp", "use_dora", "quantize_base")},
    "model.lora_rank": INTS - {"999999999"} | NULL,
    "model.lora_alpha": NUMBERS | NULL,
    "model.lora_dropout": {"0"},
    "model.lora_attn_modules": {"[]"},
    "model.loss_chunk_tokens": INTS,
    **dict.fromkeys(("dataset.style", "dataset.split"), TEXTS),
    "dataset.image_root": TEXTS | NULL,
    "dataset.new_system_prompt": TEXTS | NULL | {"''"},
    **dict.fromkeys(("dataset.allow_urls", "dataset.streaming"), BOOLS),
    "dataset.url_timeout": NUMBERS,
    "dataset.url_max_bytes": INTS,
    "dataset.column_map": {"{a: 1}"} | NULL,
    **dict.fromkeys(("dataset.image_strings", "dataset.on_bad_sample"), NONE),
    "lr_scheduler.num_warmup_steps": INTS | {"0"},
    "lr_scheduler.num_cycles": NUMBERS,
    # Of train_vit.
    "lora": NONE,
    "lora.attn_modules": {"[]"},
    "lora.mlp": BOOLS,
    "lora.rank": INTS - {"999999999"},
    "lora.alpha": NUMBERS,
    **dict.fromkeys(("lora.dropout", "label_smoothing", "val_share", "mix_share", "layer_decay"), ZERO),
    "layer_decay": NONE,
    "ema_decay": NULL,
}


def leaves(tree: dict, prefix: str = "") -> list[str]:
    """Every dotted key, those of mappings too."""
    names = []
    for key, value in tree.items():
        names += [f"{prefix}{key}", *(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else ())]
    return [name for name in names if not name.endswith("_component_")]


def keys(recipe: str) -> list[str]:
    base = PACKAGED / ("base.yaml" if recipe == "finetune" else "vit/base.yaml")
    listed = leaves(OmegaConf.to_container(OmegaConf.load(base)))
    more = [name for name in TAKEN if name.startswith(("model.", "dataset.", "lr_scheduler."))]
    return listed + (more if recipe == "finetune" else [])
