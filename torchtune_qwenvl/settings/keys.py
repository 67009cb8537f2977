"""The table of what every key takes: type and range. `validate`, the recipes, `--help` and the docs read it.

FINETUNE, TRAIN_VIT    keys of configs/base.yaml and configs/vit/base.yaml
ARGUMENTS              arguments of components, by the slot they stand in. Others are held to the type hints
                       of the component's signature
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from torchtune_qwenvl.settings.kinds import (
    ANY_TEXT,
    BOOL,
    COMPONENT_NODE,
    COMPONENTS,
    MAPPING,
    NULL,
    TEXT,
    Kind,
    choice,
    matching,
    number,
    some_of,
    whole,
)

RATE = number(above=0)
SHARE = number(low=0, below=1)
COUNT = whole(1)
EVERY = COUNT | NULL
DEGREE = COUNT | Kind("-1", lambda value: value == -1) | NULL
DEVICE = matching("cpu, cuda or cuda:N", lambda text: re.fullmatch(r"cpu|cuda(:\d+)?", text) is not None)
MODE = choice("frozen", "lora", "full") | BOOL
POLICY = choice("raise", "skip")
DTYPE = choice("bf16", "fp32")
WORDS = some_of(TEXT, "a list of texts")
MODULES = some_of(
    choice("q_proj", "k_proj", "v_proj", "output_proj"), "a list of q_proj, k_proj, v_proj, output_proj"
)
OPTIONAL = COMPONENT_NODE | NULL

# Keys of both recipes. Upper limits are where a number is surely a slip, and would exhaust the machine.
_BOTH: Mapping[str, Kind] = MappingProxyType(
    {
        "recipe": TEXT,
        "output_dir": TEXT,
        "checkpoint_dir": TEXT | NULL,
        "seed": whole(0, 2**32 - 1),
        "device": DEVICE | NULL,
        "dtype": DTYPE,
        "prepare": COMPONENTS,
        "model": OPTIONAL,
        "dataset": OPTIONAL,
        "val_dataset": OPTIONAL,
        "on_bad_sample": POLICY,
        "shuffle": BOOL,
        "batch_size": COUNT,
        "num_workers": whole(0, 1024),
        "run_val_every_n_steps": EVERY,
        "epochs": whole(1, 100_000),
        "max_steps_per_epoch": EVERY,
        "gradient_accumulation_steps": COUNT,
        "clip_grad_norm": RATE | NULL,
        "on_nonfinite": POLICY,
        "optimizer": COMPONENT_NODE,
        "lr_scheduler": OPTIONAL,
        "compile": BOOL | NULL,
        "attention_backend": choice("flash", "cudnn"),
        "data_parallel_shard_degree": DEGREE,
        "data_parallel_replicate_degree": DEGREE,
        "save_every_n_steps": EVERY,
        "save_on_signal": BOOL,
        "keep_last_n": EVERY,
        "resume": BOOL | TEXT,
        "accept_changed_data": BOOL,
        "metric_logger": COMPONENT_NODE,
        "log_every_n_steps": COUNT,
        "device_peak_tflops": RATE | NULL,
        "profiler": COMPONENT_NODE,
        "finish": COMPONENTS,
    }
)

FINETUNE: Mapping[str, Kind] = MappingProxyType(
    {
        **_BOTH,
        "base_dir": TEXT | NULL,
        "tokenizer": COMPONENT_NODE,
        "on_too_long": POLICY,
        "shuffle_buffer": COUNT,
        "padding_free": BOOL,
        "pack_to": EVERY,
        "batch_tokens": EVERY,
        "keep_lengths": BOOL,
        "cache_features": BOOL,
        "feature_cache_dir": TEXT,
        "feature_cache_gib": RATE,
        "collate_fn": TEXT,
        "val_answers": whole(0, 1000),
        "val_answer_tokens": whole(1, 100_000),
        "evaluate": COMPONENTS,
        "loss": OPTIONAL,
        "learning_rates.encoder": RATE | NULL,
        "learning_rates.fusion": RATE | NULL,
        "learning_rates.decoder": RATE | NULL,
        "activation_checkpointing.encoder": BOOL | number(low=0, high=1),
        "activation_checkpointing.decoder": BOOL | number(low=0, high=1),
        "activation_offloading": BOOL,
        "float8": choice("tensorwise", "rowwise") | NULL,
        "optimizer_in_bwd": BOOL,
        "dry_run": BOOL,
        "merge_adapter": BOOL,
        "export_dtype": DTYPE | NULL,
        "log_samples": BOOL,
    }
)

TRAIN_VIT: Mapping[str, Kind] = MappingProxyType(
    {
        **_BOTH,
        "global_pool": choice("mean", "max", "cls") | NULL,
        "train": choice("everything", "last_n", "lora", "head"),
        "last_n": COUNT,
        "lora.attn_modules": MODULES,
        "lora.mlp": BOOL,
        "lora.rank": whole(1, 2**14),
        "lora.alpha": RATE,
        "lora.dropout": SHARE,
        "label_smoothing": SHARE,
        "ema_decay": number(above=0, below=1) | NULL,
        "val_share": SHARE,
        "train_transforms": COMPONENTS,
        "val_transforms": COMPONENTS,
        "mixes": COMPONENTS,
        "mix_share": number(low=0, high=1),
        "head_lr": RATE | NULL,
        "layer_decay": number(above=0, high=1),
        "activation_checkpointing": BOOL,
        "shown_predictions": whole(0),
    }
)

_DATASET: Mapping[str, Kind] = MappingProxyType(
    {
        "style": TEXT,
        "image_root": TEXT | NULL,
        "allow_urls": BOOL,
        "url_timeout": RATE,
        "url_max_bytes": COUNT,
        "image_strings": choice("path", "base64"),
        "on_bad_sample": POLICY,
        "on_too_long": POLICY,
        "column_map": MAPPING | NULL,
        "ignore_columns": TEXT | WORDS | NULL,
        "train_on": choice("all", "last"),
        "new_system_prompt": ANY_TEXT | NULL,
        "split": TEXT,
        "streaming": BOOL,
    }
)

ARGUMENTS: Mapping[str, Mapping[str, Kind]] = MappingProxyType(
    {
        "tokenizer": {
            "folder": TEXT | NULL,
            "dtype": choice("uint8", "float32", "fp32", "bfloat16", "bf16", "float16", "fp16"),
            "max_seq_len": EVERY,
            "min_pixels": EVERY,
            "max_pixels": EVERY,
            "fps": RATE | NULL,
            "num_frames": EVERY,
            "min_frames": EVERY,
            "max_frames": EVERY,
            "max_duration": RATE | NULL,
            "video_min_pixels": EVERY,
            "video_max_pixels": EVERY,
            "video_frame_pixels": EVERY,
            "video_total_pixels": EVERY,
            "decode_timeout": RATE | NULL,
            "enable_thinking": BOOL | NULL,
            "text_tokens": TEXT | WORDS,
        },
        "model": {
            "folder": TEXT | NULL,
            "encoder_trainable": MODE,
            "fusion_trainable": MODE,
            "decoder_trainable": MODE,
            "experts_trainable": MODE | NULL,
            "lora_attn_modules": MODULES,
            "apply_lora_to_mlp": BOOL,
            "lora_rank": whole(1, 2**14) | NULL,
            "lora_alpha": RATE | NULL,
            "lora_dropout": SHARE,
            "use_dora": BOOL,
            "quantize_base": BOOL,
            "loss_chunk_tokens": COUNT,
            "router_aux_loss_coef": number(low=0),
            "mtp_trainable": BOOL,
            "mtp_loss_weight": RATE,
        },
        "dataset": _DATASET,
        "val_dataset": _DATASET,
        "optimizer": {
            "lr": RATE,
            "weight_decay": number(low=0),
            "momentum": SHARE,
            "eps": number(low=0) | some_of(number(low=0), "a list of two", length=2),
            "betas": some_of(SHARE, "two numbers, each at least 0 and less than 1", length=2),
            "bf16_stochastic_round": BOOL,
        },
        "lr_scheduler": {
            "num_warmup_steps": whole(0),
            "num_training_steps": COUNT,
            "num_cycles": number(above=0),
        },
        "metric_logger": {"log_dir": TEXT, "filename": TEXT | NULL},
        "profiler": {
            **dict.fromkeys(("enabled", "cpu", "cuda", "xpu", "profile_memory"), BOOL),
            **dict.fromkeys(("with_stack", "record_shapes", "with_flops"), BOOL),
            "output_dir": TEXT,
            "wait_steps": whole(0),
            "warmup_steps": whole(0),
            "active_steps": COUNT,
            "num_cycles": whole(0),
        },
    }
)

# Whose components the rows of ARGUMENTS hold for: a user's own may mean something else by the same name.
_OURS = ("torchtune_qwenvl", "torchtune", "torch", "torchao")


def argument_kind(slot: str, component: str, argument: str) -> Kind | None:
    """What an argument takes; None if the table has no row for it.

    Args:
        slot: the key that the component stands in.
        component: its dotted path.
        argument: its name.
    """
    if component.partition(".")[0] not in _OURS:
        return None
    return ARGUMENTS.get(slot, {}).get(argument)
