"""How Qwen2-VL writes boxes: thousandths of the image, between its own tokens.

Sources: the Qwen2-VL paper (arXiv:2409.12191, section 2.2): coordinates in [0, 1000), `<|box_start|>`,
`<|object_ref_start|>`; the conversion of the Qwen team's trainer, which clamps to 0 .. 1000:
`convert_to_qwen2vl_format` in QwenLM/Qwen3-VL, qwen-vl-finetune/tools/process_bbox.ipynb at 271ad06. ms-swift
writes the same: `replace_bbox` and `replace_ref` in swift/template/templates/qwen.py at 3602360a.
"""

from __future__ import annotations

from torchtune_qwenvl.transforms.boxes.convention import AnswerForm, BoxConvention

_BOX = "<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"
_POINT = "<|box_start|>({x},{y})<|box_end|>"
_REF = "<|object_ref_start|>{text}<|object_ref_end|>"

PER_MILLE = BoxConvention(
    grid=1000,
    box=_BOX,
    point=_POINT,
    label=_REF,
    plain=AnswerForm(box=_BOX, point=_POINT),
    labelled=AnswerForm(box="{label}" + _BOX, point="{label}" + _POINT, label=_REF),
    marks=("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
)
