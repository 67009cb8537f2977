"""Qwen3.5's tiny checkpoints: template and sizes for `tiny_families.py`."""

from typing import Any

from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX

# transformers' tokenizer of this family reads no vocab.json.
QWEN3_5: dict[str, Any] = {"centred_norms": True, "tokenizer_json": True, "words": PRETOKENIZE_REGEX}
# Renders what the published template of Qwen3.5 renders.
QWEN3_5_TEMPLATE = """\
{%- macro plain(content) -%}
{%- if content is string -%}{{- content -}}
{%- elif content -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro show(content) -%}{{- plain(content) | trim -}}{%- endmacro -%}
{%- set state = namespace(question=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- set text = show(message.content) -%}
{%- if not (text.startswith('<tool_response>') and text.endswith('</tool_response>')) -%}
{%- set state.question = loop.index0 -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if state.question < 0 -%}{{- raise_exception('No user query found in messages.') -}}{%- endif -%}
{%- set system = show(messages[0].content) if messages[0].role == 'system' else '' -%}
{%- if tools -%}
{{- '<|im_start|>system\\n# Tools\\n\\nYou have access to the following functions:\\n\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nIf you choose to call a function ONLY reply in the following format with NO suffix:' -}}
{{- '\\n\\n<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>\\nvalue_1\\n' -}}
{{- '</parameter>\\n<parameter=example_parameter_2>\\nThis is the value for the second parameter\\n' -}}
{{- 'that can span\\nmultiple lines\\n</parameter>\\n</function>\\n</tool_call>\\n\\n' -}}
{{- '<IMPORTANT>\\nReminder:\\n' -}}
{{- '- Function calls MUST follow the specified format: an inner <function=...></function> block must ' -}}
{{- 'be nested within <tool_call></tool_call> XML tags\\n- Required parameters MUST be specified\\n' -}}
{{- '- You may provide optional reasoning for your function call in natural language BEFORE the ' -}}
{{- 'function call, but NOT after\\n- If there is no function call available, answer the question like ' -}}
{{- 'normal with your current knowledge and do not tell the user about function calls\\n</IMPORTANT>' -}}
{{- ('\\n\\n' + system if system
else '') + '<|im_end|>\\n' -}} {%- elif messages[0].role == 'system' -%} {{- '<|im_start|>system\\n' + system
+ '<|im_end|>\\n' -}} {%- endif -%} {%- for message in messages -%} {%- set text = show(message.content) -%}
{%- if message.role == 'system' -%} {%- if not loop.first -%}{{- raise_exception('System message must be at
the beginning.') -}}{%- endif -%} {%- elif message.role == 'user' -%} {{- '<|im_start|>user\\n' + text +
'<|im_end|>\\n' -}} {%- elif message.role == 'tool' -%} {{- '<|im_start|>user' if loop.previtem and
loop.previtem.role != 'tool' else '' -}} {{- '\\n<tool_response>\\n' + text + '\\n</tool_response>' -}} {{-
'<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' else '' -}} {%- else -%} {%- set thought = '' -%}
{%- if '</think>' in text -%} {%- set thought =
text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') | trim -%} {%- set text =
text.split('</think>')[-1].lstrip('\\n') -%} {%- endif -%} {{- '<|im_start|>assistant\\n' -}} {{- '<think>\\n'
+ thought + '\\n</think>\\n\\n' if loop.index0 > state.question else '' -}} {{- text -}} {%- for call in
message.tool_calls or [] -%} {%- set function = call.function or call -%} {{- ('\\n\\n' if text | trim else
'') if loop.first else '\\n' -}} {{- '<tool_call>\\n<function=' + function.name + '>\\n' -}} {%- for key,
value in function.arguments | items -%} {%- set structured = value is mapping or (value is sequence and value
is not string) -%} {{- '<parameter=' + key + '>\\n' + (value | tojson if structured else value | string) -}}
{{- '\\n</parameter>\\n' -}} {%- endfor -%} {{- '</function>\\n</tool_call>' -}} {%- endfor -%} {{-
'<|im_end|>\\n' -}} {%- endif -%} {%- endfor -%} {%- if add_generation_prompt -%} {%- set quiet =
enable_thinking is defined and enable_thinking is false -%} {{- '<|im_start|>assistant\\n<think>\\n' +
('\\n</think>\\n\\n' if quiet else '') -}} {%- endif -%}
"""
# Three delta nets to one attention; head width 24, a third of it rotated, two value heads for each key head.
QWEN3_5_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 2, 2],
    },
}
QWEN3_5_MOE_TEXT: dict[str, Any] = {
    **{name: value for name, value in QWEN3_5_TEXT.items() if name != "intermediate_size"},
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 24,
}
