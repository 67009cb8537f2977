"""Write the checkpoint folder of a tiny Qwen2.5-VL with random weights and all files of a published one.

No other code knows that the model is tiny. Its family is found by config.json, its weights are read from
safetensors under the published names, its tokenizer from vocab.json and merges.txt, its template from Jinja.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn

from torchtune_qwenvl.demo.digits import ANSWER, QUESTION
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.models.weight_table import WeightTable

WIDTH, HEADS, LAYERS = 128, 4, 2
VISION_WIDTH, VISION_HEADS, VISION_LAYERS = 64, 4, 2
PATCH = 14

# The added tokens that the chat format needs, in the published order.
ADDED_TOKENS = tuple(
    f"<|{name}|>"
    for name in (
        *("endoftext", "im_start", "im_end", "vision_start", "vision_end"),
        *("vision_pad", "image_pad", "video_pad"),
    )
)

# The tokenizer learns its merges from the demo's texts; it encodes other text as bytes.
TEXTS = ("system", "user", "assistant", "You are a helpful assistant.", QUESTION, ANSWER)

CHAT_TEMPLATE = """\
{%- if messages[0].role != "system" %}
    {{- "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" }}
    {%- if message.content is string %}{{ message.content }}{% else %}
        {%- for part in message.content %}
            {{- part.text or "<|vision_start|><|" + part.type + "_pad|><|vision_end|>" }}
        {%- endfor %}
    {%- endif %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif -%}
"""


def write_tiny_checkpoint(folder: str, *, seed: int = 0) -> None:
    """Write the folder. The same seed gives the same weights.

    Args:
        folder: the folder to write to; files of an earlier run are replaced.
        seed: seed of the random weights.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.model.save(str(path))  # vocab.json, merges.txt
    ids = {token: tokenizer.get_vocab_size() + i for i, token in enumerate(ADDED_TOKENS)}
    config = tiny_config(ids)
    files: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]]},
        "preprocessor_config.json": _image_processor(),
        "tokenizer_config.json": _tokenizer_config(ids),
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }
    for name, content in files.items():
        (path / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(random_weights(config, seed), path / "model.safetensors", metadata={"format": "pt"})


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer with 256 bytes and the merges of `TEXTS`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=512, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def tiny_config(ids: dict[str, int]) -> dict[str, Any]:
    """config.json in the published (flat) form; `ids` of the added tokens, which are the last ones."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        **{f"{name}_token_id": ids[f"<|{name}|>"] for name in ("vision_start", "vision_end")},
        **{f"{name}_token_id": ids[f"<|{name}_pad|>"] for name in ("image", "video")},
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "max_position_embeddings": 2048,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS // 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        "vocab_size": max(ids.values()) + 1,
        "vision_config": {
            "depth": VISION_LAYERS,
            "fullatt_block_indexes": [VISION_LAYERS - 1],
            "hidden_act": "silu",
            "hidden_size": VISION_WIDTH,
            "in_chans": 3,
            "intermediate_size": 3 * VISION_WIDTH,
            "num_heads": VISION_HEADS,
            "out_hidden_size": WIDTH,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 8 * PATCH,
        },
    }


@torch.no_grad()
def random_weights(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """A new model's weights under their published names: norms 1, biases 0, matrices ~ N(0, 1 / inputs)."""
    family = get_family(config)
    generator = torch.Generator().manual_seed(seed)
    ours = dict(family.from_config(config).named_parameters())
    for name, parameter in ours.items():
        if parameter.dim() == 1:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            std = 0.02 if "embeddings" in name else 1 / math.sqrt(parameter.shape[1])
            nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
    return _as_published(ours, family.weights)


def _as_published(ours: dict[str, nn.Parameter], table: WeightTable) -> dict[str, Tensor]:
    """The weights with the names and shapes of the files: a fused qkv, a convolution kernel."""
    pieces: dict[str, dict[int, Tensor]] = {}
    for name, parameter in ours.items():
        piece = table.theirs(name)
        pieces.setdefault(piece.name, {})[piece.index] = parameter.detach()
    tensors = {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in pieces.items()}
    kernel = "model.visual.patch_embed.proj.weight"
    tensors[kernel] = tensors[kernel].reshape(-1, 3, 2, PATCH, PATCH)
    return {
        name.replace("model.visual.", "visual.").replace(
            "model.language_model.", "model."
        ): tensor.contiguous()
        for name, tensor in tensors.items()
    }


def _image_processor() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "min_pixels": 56 * 56,
        "max_pixels": 112 * 112,
        "merge_size": 2,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
    }


def _tokenizer_config(ids: dict[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": token, **flags} for token, i in ids.items()},
        "additional_special_tokens": list(ADDED_TOKENS[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "unk_token": None,
    }
