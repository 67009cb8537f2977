"""What is particular to each family's tiny checkpoints; `tiny.py` holds what they share."""

from dataclasses import dataclass, field
from typing import Any

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

# Added tokens in the published order; those after `<|video_pad|>` are not marked special.
ADDED_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
    "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
]  # fmt: skip
N_SPECIAL = 14

IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]

# Renders what the published template of Qwen2-VL and Qwen2.5-VL renders.
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.images = seen.images + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ seen.images ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' ~ seen.videos ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# GLM-4.1V's and GLM-4.6V's added tokens; those from `<think>` on are not marked special.
GLM_TOKENS = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|image|>", "<|video|>", "/nothink", "<think>", "</think>", "<answer>", "</answer>", "<tool_call>",
    "</tool_call>", "<tool_response>", "</tool_response>",
]  # fmt: skip

# Renders what the published template of GLM-4.1V renders.
GLM_TEMPLATE = """\
{{- '[gMASK]<sop>' -}}
{%- for message in messages if message['role'] in ('system', 'user', 'assistant') -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' and message['metadata'] -%}{{- message['metadata'] -}}{%- endif -%}
{{- '\\n' -}}
{%- if message['content'] is string or message['role'] != 'user' -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' or 'video' in part -%}
{{- '<|begin_of_video|><|video|><|end_of_video|>' -}}
{%- elif part['type'] == 'image' or 'image' in part -%}
{{- '<|begin_of_image|><|image|><|end_of_image|>' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

# Renders what the published template of GLM-4.6V renders without tools.
GLM_REASONING_TEMPLATE = """\
{%- set seen = namespace(question=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set seen.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- macro text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content -%}
{{- part['text'] if part['type'] == 'text' else '<|begin_of_image|><|image|><|end_of_image|>' -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
{%- if message['role'] == 'tool' -%}
{{- '' if loop.previtem and loop.previtem['role'] == 'tool' else '<|observation|>' -}}
{{- '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>\\n' -}}
{%- else -%}
{{- '<|' + message['role'] + '|>\\n' -}}
{%- set content = text(message['content']) -%}
{%- if message['role'] == 'assistant' -%}
{%- set thought, answer = '', content -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set answer = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<think>' + (thought.strip() if loop.index0 > seen.question else '') + '</think>' -}}
{%- set content = '\\n' + answer.strip() if answer.strip() else '' -%}
{%- endif -%}
{{- content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class TinyFamily:
    """Sizes keep what is unusual about the real model.

    `flat`: whether the published config.json puts the text entries at the top. `patch`: patch side.
    """

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    text: dict[str, Any]
    vision: dict[str, Any]
    processor: str
    flat: bool = True
    patch: int = 14
    added_tokens: list[str] = field(default_factory=lambda: ADDED_TOKENS)
    image_mean: list[float] = field(default_factory=lambda: IMAGE_MEAN)
    image_std: list[float] = field(default_factory=lambda: IMAGE_STD)
    pixels: dict[str, Any] = field(default_factory=lambda: {"min_pixels": 3136, "max_pixels": 12845056})
    template: str = CHAT_TEMPLATE
    n_special: int = N_SPECIAL
    # Which added token is what; `vision` are those around an image, with their entries of config.json.
    pad: str = "<|endoftext|>"
    eos: str = "<|im_end|>"
    image: str = "<|image_pad|>"
    video: str = "<|video_pad|>"
    marks: dict[str, str] = field(
        default_factory=lambda: {
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }
    )
    tokenizer: str = "Qwen2Tokenizer"
    image_processor: str = "Qwen2VLImageProcessor"


_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}

FAMILIES = {
    "qwen2_vl": TinyFamily(
        config=Qwen2VLConfig,
        model=Qwen2VLForConditionalGeneration,
        text=_TEXT,
        vision={
            "depth": 3,
            "embed_dim": 64,
            "mlp_ratio": 2,
            "num_heads": 4,
            "hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        processor="Qwen2VLProcessor",
        added_tokens=ADDED_TOKENS[:N_SPECIAL],
    ),
    # Windows of 4 x 4 merged tokens beside one layer with full attention.
    "qwen2_5_vl": TinyFamily(
        config=Qwen2_5_VLConfig,
        model=Qwen2_5_VLForConditionalGeneration,
        text=_TEXT,
        vision={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 100,
            "num_heads": 4,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 112,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
        },
        processor="Qwen2_5_VLProcessor",
    ),
    # Half of a head is rotated, a table of 6 x 6 positions; the files fuse gate and up.
    "glm4v": TinyFamily(
        config=Glm4vConfig,
        model=Glm4vForConditionalGeneration,
        text={
            **_TEXT,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 2],
                "partial_rotary_factor": 0.5,
            },
        },
        vision={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 100,
            "num_heads": 4,
            "out_hidden_size": 64,
            "image_size": 84,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        processor="Glm4vProcessor",
        flat=False,
        added_tokens=GLM_TOKENS,
        n_special=GLM_TOKENS.index("<think>"),
        pixels={"size": {"shortest_edge": 12544, "longest_edge": 9633792}},
        template=GLM_TEMPLATE,
        eos="<|endoftext|>",
        image="<|image|>",
        video="<|video|>",
        marks={"image_start_token_id": "<|begin_of_image|>", "image_end_token_id": "<|end_of_image|>"},
        tokenizer="PreTrainedTokenizerFast",
        image_processor="Glm4vImageProcessor",
    ),
}
