"""How GLM-4.1V, GLM-4.5V and GLM-4.6V write boxes: thousandths of the image, between the tokens of a box.

Sources: README.md of zai-org/GLM-V at 8fc9756, Grounding: quadruples [[x1,y1,x2,y2], …] divided by width or
height and multiplied by 1000, between `<|begin_of_box|>` and `<|end_of_box|>`; round(x / W * 1000), points,
and detection JSON with `label` and `bbox_2d` for several objects: the skill glmv-grounding of
zai-org/glm-skills. The coordinates are whole numbers: GLM-4.6V answers
`<|begin_of_box|>[[94,598,177,991]]<|end_of_box|>`.
"""

from __future__ import annotations

from torchtune_qwenvl.transforms.boxes.convention import AnswerForm, BoxConvention

_OPEN, _CLOSE = "<|begin_of_box|>", "<|end_of_box|>"
_BOX, _POINT = "[{x1},{y1},{x2},{y2}]", "[{x},{y}]"
GROUNDING = (_OPEN, _CLOSE)

BOXED = BoxConvention(
    grid=1000,
    box=f"{_OPEN}[{_BOX}]{_CLOSE}",
    point=f"{_OPEN}[{_POINT}]{_CLOSE}",
    plain=AnswerForm(box=_BOX, point=_POINT, opening=f"{_OPEN}[", between=",", closing=f"]{_CLOSE}"),
    labelled=AnswerForm(
        box="{{{label}" + f'"bbox_2d": {_BOX}' + "}}",
        point="{{{label}" + f'"point_2d": {_POINT}' + "}}",
        label='"label": {json}, ',
        opening=f"{_OPEN}[",
        between=", ",
        closing=f"]{_CLOSE}",
    ),
    marks=GROUNDING,
)
