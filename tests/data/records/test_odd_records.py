"""What is odd but trained on is noted, said once when a run reads it, and counted by `check`."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.checking import Examiner, read_facts, summary, write_report
from torchtune_qwenvl.data import ResumableSampler, build_loader, vision_chat_dataset
from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.data.records.text import parse_json

ANSWER = {"role": "assistant", "content": "a"}
QUESTION = {"role": "user", "content": "q"}
ODD: list[tuple[str, list[dict[str, Any]]]] = [
    ("an empty answer: the model learns to say nothing", [QUESTION, {**ANSWER, "content": ""}]),
    ("an empty answer: the model learns to say nothing", [QUESTION, {**ANSWER, "content": " \n"}]),
    ("a conversation begins with an answer", [ANSWER, QUESTION, ANSWER]),
    ("the last turn is not answered, so nothing is learnt from it", [QUESTION, ANSWER, QUESTION]),
    ("two questions in a row", [QUESTION, QUESTION, ANSWER]),
    ("two answers in a row", [QUESTION, ANSWER, ANSWER]),
    (
        "a system turn that is not the first turn",
        [QUESTION, ANSWER, {"role": "system", "content": "s"}, ANSWER],
    ),
    ("<image> in a turn of role assistant is letters", [QUESTION, {**ANSWER, "content": "<image>"}]),
]


@pytest.mark.parametrize(("note", "turns"), ODD, ids=[f"{i} {note[:20]}" for i, (note, _) in enumerate(ODD)])
def test_odd_conversations_are_noted_in_every_style(note: str, turns: list[dict[str, Any]]) -> None:
    for record in ({"messages": turns}, {"conversations": turns}, {"messages": json.dumps(turns)}):
        assert note in MessageParser().read(record).notes


def test_a_good_conversation_has_no_notes() -> None:
    masked = {**ANSWER, "content": "", "weight": 0}
    assert MessageParser().read({"messages": [QUESTION, masked, QUESTION, ANSWER]}).notes == ()


SPELLED = '{"bbox_2d": [10, 20, 30, 40], "label": "x"}'


@pytest.mark.parametrize("answer", [SPELLED, f"[{SPELLED}]", "<|box_start|>(1,2),(3,4)<|box_end|>"])
def test_coordinates_as_text_are_noted(answer: str) -> None:
    turns = {
        "messages": [{**QUESTION, "content": "<image>q"}, {**ANSWER, "content": answer}],
        "images": ["a.png"],
    }
    (note,) = MessageParser().read(turns).notes
    assert note.startswith("an answer spells out coordinates")
    tags = {**ANSWER, "content": '{"bbox_2d": <bbox>}'}
    objects = {"ref": [], "bbox": [[10, 20, 30, 40]]}
    assert (
        not MessageParser()
        .read({**turns, "messages": [turns["messages"][0], tags], "objects": objects})
        .notes
    )


def test_equal_keys_of_one_object_are_noted() -> None:
    record = parse_json('{"image": "a.png", "image": "b.png", "question": "q", "answer": "a"}')
    assert MessageParser().read(record).notes == (
        "an object has the key 'image' more than once; its last value is used",
    )
    deep = parse_json(
        '{"messages": [{"role": "user", "role": "user", "content": "q"}], "id": {"a": 1, "a": 1}}'
    )
    assert deep.repeated == ("role", "a")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples: good, with a column of metadata, odd, and too long."""
    path = tmp_path_factory.mktemp("odd") / "data.jsonl"
    rows = [
        {"messages": [QUESTION, ANSWER]},
        {"messages": [QUESTION, ANSWER], "id": "7"},
        {"messages": [QUESTION, ANSWER, QUESTION], "id": "8", "source": "x"},
        {"messages": [QUESTION, {**ANSWER, "content": "word " * 300}]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_check_names_what_is_odd_and_counts_what_is_too_long(
    source: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    examiner = Examiner(load_transform(tiny_folder, max_seq_len=100))
    facts = read_facts(vision_chat_dataset(examiner, source=str(source)))
    text = summary(facts, 100)
    assert text.startswith("4 samples: 3 good, 0 bad, 1 too long\n")
    assert "warning: the column id, source: not read" in text
    assert f"nothing is learnt from it: 1 of 4 samples, first {source}, sample 2 (from 0; line 3)" in text
    write_report(facts, examiner.transform, tmp_path)
    (listed,) = map(json.loads, (tmp_path / "bad_samples.jsonl").read_text().splitlines())
    assert listed["index"] == 3 and listed["kind"] == "longer than max_seq_len"


def loader_of(source: Path, folder: Path, on_bad_sample: str = "raise", dataset: Any = None) -> Any:
    dataset = vision_chat_dataset(load_transform(folder), source=str(source), **(dataset or {}))
    sampler = ResumableSampler(len(dataset), shuffle=False)
    return build_loader(dataset, batch_size=2, sampler=sampler, on_bad_sample=on_bad_sample, num_workers=0)


def test_bad_records_stop_a_run_before_it_trains(tiny_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    good = json.dumps({"messages": [QUESTION, ANSWER]})
    source.write_text("\n".join([good, "{", *[json.dumps({"messages": [QUESTION]})] * 6, good]))
    loader = loader_of(source, tiny_folder)
    with pytest.raises(ValueError, match="7 of 9 samples looked at") as error:
        loader.notes_at_start()
    _, *named, more, advice = str(error.value).splitlines()
    assert len(named) == 5 and f"{source}, sample 1 (from 0; line 2): not valid JSON" in named[0]
    assert more.strip() == "… and 2 more" and "tune-qwenvl check" in advice and "on_bad_sample=skip" in advice
    own = {"on_bad_sample": "skip"}
    for skipping in (loader_of(source, tiny_folder, "skip"), loader_of(source, tiny_folder, dataset=own)):
        assert [line[:12] for line in skipping.notes_at_start()] == ["a bad record"] * 2


def test_notes_are_said_at_the_start_and_only_once(
    source: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = loader_of(source, tiny_folder)
    lines = loader.notes_at_start()
    assert lines[0] == "the column id, source: not read"
    assert lines[1].startswith("the last turn is not answered, so nothing is learnt from it: 1 of 4 samples")
    with caplog.at_level(logging.WARNING):
        list(loader)
    assert caplog.messages == []


def test_notes_that_turn_up_later_are_logged_once(
    source: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = loader_of(source, tiny_folder)
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            loader.set_epoch(epoch)
            list(loader)
    place = f"{source}, sample"
    assert caplog.messages == [
        f"{place} 1 (from 0; line 2): the column 'id' is not read",
        f"{place} 2 (from 0; line 3): the column 'source' is not read",
        f"{place} 2 (from 0; line 3): the last turn is not answered, so nothing is learnt from it",
    ]
