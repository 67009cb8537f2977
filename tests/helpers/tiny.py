"""Make tiny models of every family with transformers, and checkpoint folders and images for the tests.

The sizes (`tiny_families.py`) keep what is unusual about the real models: grouped key/value heads, three
M-RoPE sections, a fused qkv in the files. The default family is Qwen2.5-VL.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import ADDED_TOKENS as ADDED_TOKENS
from tiny_families import CHAT_TEMPLATE as CHAT_TEMPLATE
from tiny_families import FAMILIES
from tiny_families import IMAGE_MEAN as IMAGE_MEAN
from tiny_families import IMAGE_STD as IMAGE_STD
from tiny_families import N_SPECIAL as N_SPECIAL
from tiny_families import QWEN3_THINKING_TEMPLATE as QWEN3_THINKING_TEMPLATE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel

from torchtune_qwenvl.transforms.chat.tokenizer import BPETokenizer
from torchtune_qwenvl.transforms.processor_folder import extra_tokens

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# Enough merges that words are not just bytes ("Ġ" is the byte-level space).
MERGES = [
    "t h", "th e", "i n", "a n", "Ġ the", "e r", "o u", "Ġ a", "Ġ i", "i t", "Ġ w", "h a", "Ġ d", "e s",
    "Ġ in", "in g", "an d", "r e",
]  # fmt: skip
TINY_BASE = 256 + len(MERGES)
REAL_BASE = 151643


def shared_data() -> Path:
    """`../shared/data` with the real vocabulary and published config files; skips the test without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"Qwen's real vocabulary and the published files are not in {SHARED_DATA}")
    return SHARED_DATA


def token_id(token: str, base: int = TINY_BASE, family: str = "qwen2_5_vl") -> int:
    """Id of an added token such as `<|image_pad|>` that follows `base` ordinary tokens."""
    return base + FAMILIES[family].added_tokens.index(token)


def tiny_hf_config(
    *,
    family: str = "qwen2_5_vl",
    tie: bool = False,
    vocab_size: int = 512,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **changes: Any,
) -> PreTrainedConfig:
    """Config of a tiny model; `text` and `vision` change entries of the two towers, `changes` the top level.

    With a `vocab_size` above 151,643, special tokens get the published ids, else those of the tiny tokenizer.
    """
    base = REAL_BASE if vocab_size > REAL_BASE else TINY_BASE
    kind = FAMILIES[family]
    marks = {**kind.marks, **kind.video_marks}
    text_config = {
        **kind.text,
        "vocab_size": vocab_size,
        "bos_token_id": token_id(kind.pad, base, family),
        "eos_token_id": token_id(kind.eos, base, family),
        "pad_token_id": token_id(kind.pad, base, family),
    }
    return kind.config(
        text_config={**text_config, **(text or {})},
        vision_config={**kind.vision, **(vision or {})},
        **{
            "tie_word_embeddings": tie,
            "image_token_id": token_id(kind.image, base, family),
            "video_token_id": token_id(kind.video, base, family),
            **{entry: token_id(token, base, family) for entry, token in marks.items()},
            **changes,
        },
    )


def tiny_hf_model(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The reference model of `tiny_hf_config(**changes)`: fp32, eval, all parameters random (norms around 1).

    In a new model all norms are 1 and all biases 0, so a test would not notice if some were swapped or
    dropped.
    """
    config = tiny_hf_config(**changes)
    kind = FAMILIES[config.model_type]
    model = kind.model(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
            is_norm = ("norm" in name or "ln_q" in name) and name.endswith("weight")
            centred = kind.centred_norms and "language_model" in name and "linear_attn" not in name
            fan_in = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()
            scale = 0.05 if parameter.ndim == 1 else fan_in**-0.5
            values = (0 if centred else 1) + 0.2 * noise if is_norm else 1.7 * scale * noise
            parameter.copy_(2 * noise - 1 if name.endswith("A_log") else values)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # enough to change which experts are chosen
                buffer.copy_(torch.rand(buffer.shape, generator=generator))
    return model


def save_tiny_folder(
    path: str | Path,
    *,
    seed: int = 0,
    layout: str = "published",
    max_shard_size: str = "1GB",
    dtype: torch.dtype = torch.float32,
    model: PreTrainedModel | None = None,
    **changes: Any,
) -> Path:
    """Write a tiny checkpoint folder with tokenizer, template and processor files; returns `path`.

    `layout`: "published" as the hub has it (flat config.json, vocab.json + merges.txt, chat_template.json),
    "5.x" as transformers 5 saves it (nested config.json, tokenizer.json, processor_config.json; the same
    tensor names), or "in_memory": like 5.x with the names of the module tree (`model.language_model.*`).
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    model = (model or tiny_hf_model(seed, **changes)).to(dtype)
    model.save_pretrained(path, max_shard_size=max_shard_size, save_original_format=layout != "in_memory")
    write_processor_files(
        path,
        base=REAL_BASE if model.config.text_config.vocab_size > REAL_BASE else TINY_BASE,
        family=model.config.model_type,
    )
    if layout == "published":
        write = flat_config if FAMILIES[model.config.model_type].flat else nested_config
        _write_json(path / "config.json", write(model.config, dtype))
    else:
        AutoProcessor.from_pretrained(path).save_pretrained(path)
        old_files = ("vocab.json", "merges.txt", "preprocessor_config.json", "chat_template.json")
        for old in (*old_files, "video_preprocessor_config.json"):
            (path / old).unlink(missing_ok=True)
    return path


def flat_config(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """config.json as published before 5.x: text entries at the top, `rope_scaling`, `torch_dtype`."""
    nested = config.to_dict()
    text = {k: v for k, v in nested["text_config"].items() if k not in ("model_type", "layer_types", "dtype")}
    rope = text.pop("rope_parameters")
    vision = {k: v for k, v in nested["vision_config"].items() if k not in ("rope_parameters", "dtype")}
    vision["in_chans"] = vision.pop("in_channels")
    top = {k: v for k, v in nested.items() if not k.endswith("_config") and k != "dtype"}
    return {
        **text,
        **top,
        "architectures": [FAMILIES[config.model_type].model.__name__],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.41.2",
        "vision_config": vision,
    }


def nested_config(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """config.json as published for Qwen3-VL: nested, `rope_scaling` and `rope_theta` in text_config."""
    nested = config.to_dict()
    text = {k: v for k, v in nested["text_config"].items() if k not in ("layer_types", "dtype")}
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": {**rope, "mrope_interleaved": True}}
    vision = {k: v for k, v in nested["vision_config"].items() if k not in ("rope_parameters", "dtype")}
    return {
        **{k: v for k, v in nested.items() if k != "dtype"},
        "architectures": [FAMILIES[config.model_type].model.__name__],
        "transformers_version": "4.57.0.dev0",
        "text_config": {**text, "dtype": str(dtype).removeprefix("torch.")},
        "vision_config": {**vision, "model_type": config.model_type},
    }


def write_processor_files(path: Path, base: int = TINY_BASE, family: str = "qwen2_5_vl") -> None:
    """Write tokenizer, template and processor files as published; the tiny vocabulary consists of bytes."""
    kind = FAMILIES[family]
    if base == REAL_BASE:
        for name in ("vocab.json", "merges.txt"):
            (path / name).write_bytes((shared_data() / "qwen2_5_tokenizer" / name).read_bytes())
    else:
        tokens = sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
        _write_json(path / "vocab.json", {token: i for i, token in enumerate(tokens)})
        (path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", encoding="utf-8")
    write_tokenizer_config(path, base, family)
    if kind.tokenizer_json:
        _join_tokenizer_files(path, kind.words)
    _write_json(path / "chat_template.json", {"chat_template": kind.template})
    patches = {
        **{"patch_size": kind.patch, "temporal_patch_size": 2, "merge_size": 2},
        **{"image_mean": kind.image_mean, "image_std": kind.image_std, "processor_class": kind.processor},
    }
    images = {**kind.pixels, **patches, "image_processor_type": kind.image_processor}
    _write_json(path / "preprocessor_config.json", images)
    if kind.videos is not None:
        _write_json(path / "video_preprocessor_config.json", {**patches, **kind.videos})


def write_tokenizer_config(path: Path, base: int, family: str) -> None:
    """Write tokenizer_config.json as published, with the added tokens after `base` ordinary ones."""
    kind = FAMILIES[family]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(base + i): {"content": token, **flags, "special": i < kind.n_special}
        for i, token in enumerate(kind.added_tokens)
    }
    _write_json(
        path / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": kind.added_tokens[1 : kind.n_special],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": kind.eos,
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": kind.pad,
            "split_special_tokens": False,
            "tokenizer_class": kind.tokenizer,
            "unk_token": None,
        },
    )


def _join_tokenizer_files(path: Path, split_words: str) -> None:
    """Replace vocab.json, merges.txt and the list of added tokens by tokenizer.json."""
    words = BPETokenizer(
        path / "vocab.json",
        path / "merges.txt",
        extra_tokens=extra_tokens(json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))),
        eos_token="<|endoftext|>",
        words=split_words,
    )
    words._tokenizer.save(str(path / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (path / name).unlink()


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A random RGB image with the smooth areas, edges and grain of a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    top, left = rng.integers(0, max(1, height // 2)), rng.integers(0, max(1, width // 2))
    smooth[top : top + height // 3, left : left + width // 3] = rng.integers(0, 256, 3)
    return Image.fromarray((smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
