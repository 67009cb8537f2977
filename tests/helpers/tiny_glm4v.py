"""GLM's tiny checkpoints: tokens, templates and sizes for `tiny_families.py`."""

from typing import Any

# GLM-4.1V's and GLM-4.6V's added tokens; those from `<think>` on are not marked special.
GLM_TOKENS = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>",
    "<|end_of_video|>", "<|image|>", "<|video|>", "/nothink", "<think>", "</think>", "<answer>",
    "</answer>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
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

# What Qwen3-VL's and GLM-4.6V's templates write before the tools.
TOOLS_INTRO = (
    "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n"
    "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>"
)

# Renders what the published template of GLM-4.6V renders.
GLM_REASONING_TEMPLATE = """\
{%- set quiet = enable_thinking is defined and not enable_thinking -%}
{%- set seen = namespace(question=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set seen.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- macro text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'text' -%}{{- part['text'] -}}
{%- elif part['type'] == 'video' -%}{{- '<|begin_of_video|><|video|><|end_of_video|>' -}}
{%- else -%}{{- '<|begin_of_image|><|image|><|end_of_image|>' -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- '[gMASK]<sop>' -}}
{%- if tools -%}
{{- '<|system|>\\nTOOLS_INTRO' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson(ensure_ascii=False)) -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, output the function name and arguments within ' -}}
{{- 'the following XML format:\\n<tool_call>{function-name}\\n' -}}
{%- for i in '12' -%}
{{- '<arg_key>{arg-key-' + i + '}</arg_key>\\n<arg_value>{arg-value-' + i + '}</arg_value>\\n' -}}
{%- endfor -%}
{{- '...\\n</tool_call>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'tool' -%}
{{- '' if loop.previtem and loop.previtem['role'] == 'tool' else '<|observation|>' -}}
{{- '\\n<tool_response>\\n' + text(message['content']) + '\\n</tool_response>' -}}
{{- '\\n' if message['content'] is string else '' -}}
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
{%- for call in message['tool_calls'] or [] -%}
{%- set function = call['function'] or call -%}
{{- '\\n<tool_call>' + function['name'] + '\\n' -}}
{%- for key, value in function['arguments'].items() -%}
{{- '<arg_key>' + key + '</arg_key>\\n<arg_value>' -}}
{{- value if value is string else value | tojson(ensure_ascii=False) -}}{{- '</arg_value>\\n' -}}
{%- endfor -%}
{{- '</tool_call>' -}}
{%- endfor -%}
{%- if message['role'] == 'user' and quiet -%}
{{- '' if content.endswith('/nothink') else '/nothink' -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' + ('<think></think>\\n' if quiet else '') -}}
{%- endif -%}
""".replace("TOOLS_INTRO", TOOLS_INTRO)

# Rotary embedding of half a head, a table of 6 x 6 positions; the files fuse gate and up.
GLM4V: dict[str, Any] = dict(
    text={
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
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
    video_marks={"video_start_token_id": "<|begin_of_video|>", "video_end_token_id": "<|end_of_video|>"},
    video_pad="image_token_id",
    timestamps=True,
    tokenizer="PreTrainedTokenizerFast",
    tokenizer_json=True,
    image_processor="Glm4vImageProcessor",
    videos={
        "size": {"shortest_edge": 12544, "longest_edge": 47040000},
        **{"fps": 2, "max_duration": 300, "do_sample_frames": True},
        "video_processor_type": "Glm4vVideoProcessor",
    },
)
# The first layer is dense, the other two have experts in three groups, of which two are used per token. Heads
# are wider than hidden size / heads.
GLM4V_MOE: dict[str, Any] = {
    **GLM4V,
    "text": {
        **GLM4V["text"],
        "num_hidden_layers": 3,
        "head_dim": 24,
        "rope_parameters": {**GLM4V["text"]["rope_parameters"], "mrope_section": [2, 1, 3]},
        "moe_intermediate_size": 40,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "n_group": 3,
        "topk_group": 2,
        "routed_scaling_factor": 0.75,
    },
    "template": GLM_REASONING_TEMPLATE,
}
