"""What differs between the families' tiny checkpoints; `tiny.py` holds what they share."""

from dataclasses import dataclass, field
from typing import Any

from hybrid.tiny_qwen3_5 import QWEN3_5, QWEN3_5_MOE_TEXT, QWEN3_5_TEMPLATE, QWEN3_5_TEXT
from tiny_glm4v import GLM4V, GLM4V_MOE, TOOLS_INTRO
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from torchtune_qwenvl.transforms.chat.tokenizer import WORDS

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

# Renders what the published templates of Qwen3-VL render: Instruct, and Thinking with `thinking` set.
QWEN3_TEMPLATE = """\
{%- macro show(content) -%}
{%- if content is string -%}{{- content -}}{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set state = namespace(question=messages | length - 1, found=false) -%}
{%- for message in messages | reverse -%}
{%- if message.role == 'user' and not state.found -%}
{%- set text = show(message.content) -%}
{%- if not (text.startswith('<tool_response>') and text.endswith('</tool_response>')) -%}
{%- set state.question = loop.revindex0 -%}
{%- set state.found = true -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' -%}{{- show(messages[0].content) + '\\n\\n' -}}{%- endif -%}
{{- 'TOOLS_INTRO' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments ' -}}
{{- 'within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, ' -}}
{{- '"arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set text = show(message.content) -%}
{%- if tools and loop.first and message.role == 'system' -%}
{%- elif message.role == 'tool' -%}
{%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + text + '\\n</tool_response>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- else -%}
{%- set thought = namespace(text='', answer=text) -%}
{%- if thinking and message.role == 'assistant' -%}
{%- if '</think>' in text -%}
{%- set thought.text = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- set thought.answer = text -%}
{%- if loop.index0 > state.question and (loop.last or thought.text) -%}
{%- set text = '<think>\\n' + thought.text.strip('\\n') + '\\n</think>\\n\\n' + text.lstrip('\\n') -%}
{%- endif -%}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + text -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{{- '\\n' if thought.answer or not loop.first else '' -}}
{{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
{{- function.arguments if function.arguments is string else function.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' + ('<think>\\n' if thinking else '') -}}
{%- endif -%}
""".replace("TOOLS_INTRO", TOOLS_INTRO)
QWEN3_THINKING_TEMPLATE = "{%- set thinking = true -%}\n" + QWEN3_TEMPLATE


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
    # The same for videos where they have their own, the placeholder's entry, and whether every temporal patch
    # has an image's marks and its time.
    video_marks: dict[str, str] = field(default_factory=dict)
    video_pad: str = "video_token_id"
    timestamps: bool = False
    centred_norms: bool = False  # the decoder's norms scale by 1 + weight
    tokenizer: str = "Qwen2Tokenizer"
    tokenizer_json: bool = False
    words: str = WORDS  # how text is split before BPE
    image_processor: str = "Qwen2VLImageProcessor"
    # Entries of video_preprocessor_config.json that the images' file lacks; None: there is no such file.
    videos: dict[str, Any] | None = None


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

_QWEN3_TEXT = {
    **_TEXT,
    "num_hidden_layers": 3,
    "head_dim": 24,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 3, 3]},
}
_QWEN3_VISION = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_heads": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 2],
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN3: dict[str, Any] = {
    "processor": "Qwen3VLProcessor",
    "flat": False,
    "patch": 16,
    "added_tokens": [*ADDED_TOKENS, "<tool_response>", "</tool_response>", "<think>", "</think>"],
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "pixels": {"size": {"shortest_edge": 4096, "longest_edge": 16777216}},
    "template": QWEN3_TEMPLATE,
    "timestamps": True,
    "videos": {
        "size": {"shortest_edge": 4096, "longest_edge": 25165824},
        **{"fps": 2, "min_frames": 4, "max_frames": 768, "do_sample_frames": True},
        "video_processor_type": "Qwen3VLVideoProcessor",
    },
}

_QWEN3_5 = {**_QWEN3, "template": QWEN3_5_TEMPLATE, **QWEN3_5}
_QWEN3_5_VISION = {name: x for name, x in _QWEN3_VISION.items() if name != "deepstack_visual_indexes"}

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
    # Windows of 4 x 4 merged tokens, and one layer with full attention.
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
    # Heads wider than hidden size / heads; one decoder layer more than DeepStack features.
    "qwen3_vl": TinyFamily(
        config=Qwen3VLConfig,
        model=Qwen3VLForConditionalGeneration,
        text=_QWEN3_TEXT,
        vision=_QWEN3_VISION,
        **_QWEN3,
    ),
    # The first layer is dense, the other two have experts.
    "qwen3_vl_moe": TinyFamily(
        config=Qwen3VLMoeConfig,
        model=Qwen3VLMoeForConditionalGeneration,
        text={
            **_QWEN3_TEXT,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "mlp_only_layers": [0],
        },
        vision=_QWEN3_VISION,
        **_QWEN3,
    ),
    # Three delta nets to one attention, as in the real model, and more value heads than key heads.
    "qwen3_5": TinyFamily(
        config=Qwen3_5Config,
        model=Qwen3_5ForConditionalGeneration,
        text=QWEN3_5_TEXT,
        vision=_QWEN3_5_VISION,
        **_QWEN3_5,
    ),
    "qwen3_5_moe": TinyFamily(
        config=Qwen3_5MoeConfig,
        model=Qwen3_5MoeForConditionalGeneration,
        text=QWEN3_5_MOE_TEXT,
        vision=_QWEN3_5_VISION,
        **_QWEN3_5,
    ),
    "glm4v": TinyFamily(config=Glm4vConfig, model=Glm4vForConditionalGeneration, **GLM4V),
    "glm4v_moe": TinyFamily(config=Glm4vMoeConfig, model=Glm4vMoeForConditionalGeneration, **GLM4V_MOE),
}
