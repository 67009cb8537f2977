"""How Qwen2.5-VL writes boxes: pixels of the resized image, in JSON.

Sources: the answers in the Qwen team's cookbooks (spatial_understanding.ipynb of QwenLM/Qwen2.5-VL, whose
helper `plot_bounding_boxes` reads `bbox_2d` and `label`; omni_recognition.ipynb of QwenLM/Qwen3-VL at
9658872, which prints such a list), points as `point_2d` in spatial_understanding.ipynb; no special tokens,
says a member of the team (QwenLM/Qwen3-VL#733); pixels after the processor's resize (#676, #721). The
conversion: `convert_to_qwen25vl_format` in qwen-vl-finetune/tools/process_bbox.ipynb at 271ad06, which
clamps to the last pixel. ms-swift writes these coordinates too, with QWENVL_BBOX_FORMAT=new as `[x1, y1,
x2, y2]`.
"""

from __future__ import annotations

from dataclasses import replace

from torchtune_qwenvl.transforms.boxes.convention import AnswerForm, BoxConvention

# The tokens are Qwen2-VL's; the vocabulary still has them.
GROUNDING = (
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>"),
)
_BOX = "[{x1}, {y1}, {x2}, {y2}]"
_POINT = "[{x}, {y}]"
_LIST = AnswerForm(
    box='\t{{"bbox_2d": ' + _BOX + "{label}}}",
    point='\t{{"point_2d": ' + _POINT + "{label}}}",
    label=', "label": {json}',
    opening="```json\n[\n",
    between=",\n",
    closing="\n]\n```",
)

PIXELS = BoxConvention(grid=None, box=_BOX, point=_POINT, plain=_LIST, labelled=_LIST, infers_labels=True)
JSON_PER_MILLE = replace(PIXELS, grid=1000)
