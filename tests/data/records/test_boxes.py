"""Records with boxes: ms-swift's, COCO's, lists of objects, typed parts; what does not add up is refused."""

import json

import pytest

from torchtune_qwenvl.data.records.boxes import BoxReader
from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.transforms.errors import BadSample

TWO = [[10, 20, 30, 40], [1, 2, 3, 4]]


def talk(question="Find <ref-object>", answer="<bbox>", **objects):
    record = {"image": "a.jpg", "question": question, "answer": answer}
    return {**record, "objects": objects} if objects else record


def parts(record, **settings):
    messages = MessageParser(boxes=BoxReader(**settings))(record)
    return [part for message in messages for part in message.content if part["type"] != "image"]


def part(box, image=0, unit="pixels", **more):
    return {"type": "box", "content": box, "image": image, "unit": unit, **more}


def test_ms_swift_in_text_and_as_a_whole_answer():
    found = parts(talk(ref=["the sheep"], bbox=TWO[:1]))
    whole = {"type": "boxes", "content": [part(TWO[0])], "asked": ["the sheep"]}
    assert found == [{"type": "text", "content": "Find "}, {"type": "ref", "content": "the sheep"}, whole]
    found = parts(talk("Describe", "<ref-object><bbox> and <ref-object><bbox>.", ref=["a", "b"], bbox=TWO))
    assert [one["type"] for one in found] == ["text", "ref", "box", "text", "ref", "box", "text"]
    assert [found[2], found[5]] == [part(box) for box in TWO]
    (_, whole) = parts(talk("List", "<ref-object><bbox>, <ref-object><bbox>\n", ref=["a", "b"], bbox=TWO))
    assert [one["label"] for one in whole["content"]] == ["a", "b"]
    (_, _, tap, _) = parts(talk("Tap", "click(start_box='<bbox>')", bbox=[[615, 226]]))
    assert tap == {"type": "point", "content": [615, 226], "image": 0, "unit": "pixels"}


@pytest.mark.parametrize("style", ["messages", "conversations"])
def test_tags_in_both_styles_of_turns(style):
    names = {
        "messages": ("role", "content", "user", "assistant"),
        "conversations": ("from", "value", "human", "gpt"),
    }
    who, what, user, model = names[style]
    record = {
        style: [{who: user, what: "Find <ref-object>"}, {who: model, what: "<bbox>"}],
        "objects": {"ref": ["a"], "bbox": [[1, 2, 3, 4]], "bbox_type": "norm1000", "image_id": [2]},
    }
    *_, whole = parts(record)
    assert whole["content"] == [part([1, 2, 3, 4], image=2, unit="norm1000")]


def test_json_text_and_lists_of_objects():
    listed = [{"caption": "a", "bbox": TWO[0]}, {"caption": "b", "bbox": TWO[1]}]
    fields = {"ref": json.dumps(["a", "b"]), "bbox": json.dumps(TWO)}
    each = {"ref": ["a", "b"], "bbox": [json.dumps(box) for box in TWO]}
    for objects in (listed, json.dumps(listed), {"ref": ["a", "b"], "bbox": TWO}, fields, each):
        record = {**talk("List", "<ref-object><bbox><ref-object><bbox>"), "objects": objects}
        assert [one["label"] for one in parts(record)[1]["content"]] == ["a", "b"]


def test_coco_without_a_conversation_asks_for_every_object():
    record = {
        "image": "a.jpg",
        "image_id": 397133,
        "objects": {"id": [7, 8], "bbox": TWO, "category": [1, 0]},
    }
    question, whole = parts(record, labels=("cat", "dog"))
    assert question["content"] == "Locate every object in the image of these kinds: cat, dog."
    assert whole["content"] == [part([10, 20, 40, 60], label="dog"), part([1, 2, 4, 6], label="cat")]
    record |= {"answer": float("nan"), "question": float("nan")}
    assert parts(record, labels=("cat", "dog")) == [question, whole]
    annotations = [{"id": 7, "image_id": 9, "category_id": 1, "bbox": TWO[0], "area": 1200, "iscrowd": 0}]
    _, whole = parts({"image": "a.jpg", "objects": annotations}, labels=("cat", "dog"), question="Where?")
    assert whole["content"] == [part([10, 20, 40, 60], label="dog")]


def test_boxes_in_columns_of_their_own():
    record = {"image": "a.jpg", "question": "Find <ref-object>", "answer": "<bbox>"}
    for flat in ({"bbox": TWO[0], "ref": "it"}, {"bbox": [TWO[0]], "label": ["it"]}):
        *_, ref, whole = parts({**record, **flat})
        assert ref["content"] == "it" and whole["content"] == [part(TWO[0])]
    _, whole = parts({"image": "a.jpg", "bboxes": TWO, "category": ["a", "b"]})
    assert whole["content"][1] == part([1, 2, 4, 6], label="b")
    mapped = {"image": "a.jpg", "question": "Where?", "answer": "<bbox>", "where": TWO[0]}
    messages = MessageParser(column_map={"objects": "where"})(mapped)
    assert messages[-1].content[0]["content"] == [part(TWO[0])]


def test_corners_under_coco_names_are_found_by_their_areas_or_said():
    corners = {"bbox": TWO, "category": ["a", "b"], "area": [400, 4]}
    assert parts({"image": "a.jpg", "objects": corners})[1]["content"][0]["content"] == TWO[0]
    said = {"bbox": TWO, "category": ["a", "b"], "box_format": "xyxy"}
    assert parts({"image": "a.jpg", "objects": said})[1]["content"][0]["content"] == TWO[0]
    assert parts(talk(bbox=TWO[:1], ref=["a"]), format="xywh")[2]["content"][0]["content"] == [10, 20, 40, 60]


def test_units_are_said_by_the_record_by_the_dataset_or_found():
    quarter = [[0.25, 0.25, 0.5, 0.5]]
    assert parts(talk(bbox=quarter, ref=["a"]))[2]["content"][0]["unit"] == "norm1"
    assert parts(talk(bbox=TWO[:1], ref=["a"]), unit="norm1000")[2]["content"][0]["unit"] == "norm1000"
    said = talk(bbox=TWO[:1], ref=["a"], bbox_type="real")
    assert parts(said, unit="norm1000")[2]["content"][0]["unit"] == "real"


def test_typed_parts():
    answer = [
        {"type": "text", "text": "at "},
        {"type": "point", "point": [5, 6], "label": "tip"},
        {"type": "box", "box": [1, 2, 3, 4], "unit": "norm1000", "image": 1},
        {"type": "boxes", "boxes": [{"box": [1, 2, 3, 4], "label": "a"}, {"point": [5, 6]}]},
    ]
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}
    _, _, point, box, listed = parts(record)
    assert point == {"type": "point", "content": [5, 6], "image": 0, "label": "tip"}
    assert box == part([1, 2, 3, 4], image=1, unit="norm1000")
    assert [one["type"] for one in listed["content"]] == ["box", "point"]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (talk(bbox=TWO, ref=["a"]), "2 boxes, but 1 <bbox> tags"),
        (talk(answer="<bbox><bbox>", bbox=TWO[:1], ref=["a"]), "1 boxes, but 2 <bbox> tags"),
        (
            talk("Find <ref-object>, <ref-object>", bbox=TWO[:1], ref=["a"]),
            "1 names in ref, but 2 <ref-object>",
        ),
        (talk(bbox=TWO[:1], ref=["a", "b", "c"]), "3 names in ref, but 1 <ref-object>"),
        (talk(), "<ref-object> in a text, but no column objects|<bbox> in a text, but no column objects"),
        (talk(bbox=[[1, 2, 3]], ref=["a"]), "expected a box"),
        (talk(bbox=[["1", 2, 3, 4]], ref=["a"]), "expected a box"),
        (talk(bbox=[[30, 40, 10, 20]], ref=["a"]), "right or lower edge comes first"),
        (
            talk(bbox="x", ref=["a"]),
            r"expected a list of boxes, got 'x' \(write \[x1, y1, x2, y2\]",
        ),
        (talk(bbox="[1, 2", ref=["a"]), "not valid JSON"),
        (talk(bbox=TWO[:1], ref=[3]), "label 3, of which the name is not known"),
        (talk(bbox=TWO[:1], ref=["a"], bbox_type="cm"), "unknown unit of boxes 'cm'"),
        (talk(bbox=TWO[:1], ref=["a"], box_format="cxcywh"), "unknown box_format 'cxcywh'"),
        (talk(bbox=TWO[:1], ref=["a"], colour=["red"]), "a field 'colour' that is not known"),
        (talk(bbox=TWO[:1], ref=["a"], image_id=[0, 1]), "2 image numbers for 1 boxes"),
        ({**talk(), "objects": "{"}, "expected JSON"),
        ({**talk(), "objects": [{"bbox": TWO[0]}, 1]}, "expected fields such as ref and bbox"),
        ({"image": "a.jpg", "objects": {"category": ["a"]}}, "no objects, so there is no answer"),
    ],
)
def test_what_does_not_add_up_is_refused(record, problem):
    with pytest.raises(BadSample, match=problem):
        parts(record)


@pytest.mark.parametrize("settings", [{"unit": "cm"}, {"format": "cxcywh"}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        BoxReader(**settings)
