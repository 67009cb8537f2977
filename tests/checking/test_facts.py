"""Facts equal what training sees: lengths before and after truncation, visual tokens, sizes, duplicates."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from record_sets.damaged import record, write_damaged
from torch.utils.data import IterableDataset

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.checking import Examiner, Facts, draw_sheet, read_facts, samples_of, summary
from torchtune_qwenvl.checking.kinds import kind_of, masked
from torchtune_qwenvl.checking.sheet import conversation
from torchtune_qwenvl.data import vision_chat_dataset
from torchtune_qwenvl.data.mixed_dataset import mixed_dataset
from torchtune_qwenvl.pictures.lengths import draw_lengths
from torchtune_qwenvl.pictures.style import PALE_GREEN
from torchtune_qwenvl.transforms.errors import BadSample, SampleTooLong


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five records: one image, two exchanges, far too long, text only, and the first one again."""
    folder = tmp_path_factory.mktemp("data")
    tiny.photo(84, 140).save(folder / "a.jpg")
    long = record("a.jpg", 1)
    long["conversations"][1]["value"] = "word " * 300
    two = record("a.jpg", 2)
    two["conversations"] += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "more " * 40}]
    text = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    rows = [record("a.jpg", 0), two, long, text, record("a.jpg", 0)]
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


def facts_of(folder: Path, source: Path, decode: bool = True, **limits: Any) -> list[Facts]:
    return read_facts(vision_chat_dataset(Examiner(load_transform(folder, **limits), decode), source=source))


def test_lengths_are_the_transforms(tiny_folder: Path, source: Path) -> None:
    transform = load_transform(tiny_folder)
    samples = list(vision_chat_dataset(transform, source=source))
    facts = facts_of(tiny_folder, source, max_seq_len=150)
    assert [f.tokens for f in facts] == [len(sample["tokens"]) for sample in samples]
    assert [f.trained_tokens for f in facts] == [sample["mask"].count(False) for sample in samples]
    assert [f.visual_tokens for f in facts] == [15, 15, 15, 0, 15]
    assert facts[0].images == ((84, 140),) and facts[3].images == ()
    cut = list(
        vision_chat_dataset(load_transform(tiny_folder, max_seq_len=150), source=source, on_too_long="skip")
    )
    kept = [len(sample["tokens"]) if isinstance(sample, dict) else 0 for sample in cut]
    assert [f.kept_tokens for f in facts] == kept and kept[2] == 0 and 0 < kept[1] < facts[1].tokens
    assert facts_of(tiny_folder, source, decode=False, max_seq_len=150) == facts


def test_summary_says_what_is_cut_and_repeated(tiny_folder: Path, source: Path) -> None:
    facts = facts_of(tiny_folder, source, max_seq_len=150)
    text = summary(facts, 150)
    assert "5 samples: 4 good, 0 bad, 1 too long" in text
    assert "max_seq_len 150: 1 sample cut at the end, 1 too long for it" in text
    assert "warning: samples that repeat an earlier one word for word: 1 (4 = 0)" in text
    assert "images, height x width: smallest 84 x 140" in text
    assert "every sample fits" in summary(facts_of(tiny_folder, source, max_seq_len=4096), 4096)
    assert "max_seq_len is not set" in summary(facts, None)


def test_a_mix_is_read_once_and_whole(tiny_folder: Path, source: Path) -> None:
    entry = {"source": str(source), "weight": 0.5}
    entries = [{**entry, "label": "a"}, {**entry, "label": "b", "split": "train[:2]"}]
    dataset = mixed_dataset(Examiner(load_transform(tiny_folder)), datasets=entries)
    assert [f.index for f in read_facts(dataset)] == [*range(7)]


def test_a_stream_is_read_in_shares(tiny_folder: Path, tmp_path: Path) -> None:
    source, damaged = write_damaged(tmp_path, 200)
    options = {"source": source, "streaming": True}
    dataset = vision_chat_dataset(Examiner(load_transform(tiny_folder), decode=False), **options)
    alone, shared = read_facts(dataset), read_facts(dataset, num_workers=2)
    assert {f.where for f in shared if f.kind} == {f.where for f in alone if f.kind}
    assert len(alone) == len(shared) == 200 and [f.index for f in alone if f.kind] == list(damaged)
    drawn = samples_of(vision_chat_dataset(load_transform(tiny_folder), **options), alone, 4)
    assert [where for where, _ in drawn] == [f.where for f in alone[:4]]


def test_a_stream_that_breaks_off_is_a_finding() -> None:
    class Breaking(IterableDataset):
        def __iter__(self):
            yield {"tokens": [1, 2], "mask": [True, False], "facts": Facts(tokens=2)}
            raise ConnectionError("gone after 7 s")

    good, broken = read_facts(Breaking())
    assert good.tokens == 2 and not good.kind
    assert broken.reason == "the stream broke off: ConnectionError: gone after 7 s"


def test_errors_of_one_kind_are_alike() -> None:
    first = BadSample("no image at '/a/b c.jpg', 3 of 1,024", where="message 1", fix="find it")
    second = BadSample("no image at 'd.png', 14 of 7").at("file.json, sample 2")
    assert kind_of(first) == kind_of(second) == "no image at '…', … of …"
    assert (
        masked("[1, 2, 3, 4.5] (pixels) leaves its image of 3 x 4")
        == "[…] (pixels) leaves its image of … x …"
    )
    wrapped = SampleTooLong("line 7: no image at 'x', 1 of 2")
    wrapped.__cause__ = first
    assert kind_of(wrapped) == kind_of(first)
    assert kind_of(KeyError("value")) == "KeyError: '…'"
    assert (
        masked("expected a file at /a/b-1.jpg, got <_io.BytesIO object at 0x7f>")
        == "expected a file at …, got '…'"
    )


def test_sheet_marks_what_is_trained_on(tiny_folder: Path, source: Path, tmp_path: Path) -> None:
    transform = load_transform(tiny_folder, max_seq_len=150)
    dataset = vision_chat_dataset(transform, source=source, on_too_long="skip")
    samples = [sample for sample in dataset if isinstance(sample, dict)]
    spans = conversation(samples[0], transform)
    assert "".join(span.text for span in spans if span.back == PALE_GREEN) == "It is a thing <|im_end|>\n"
    assert " 15 visual tokens " in [span.text for span in spans]
    draw_sheet([("here", sample) for sample in samples], transform, 5, tmp_path / "samples.png")
    draw_lengths(
        [10, 10, 4000], [0, 5, 3000], [(50, 2000)], tmp_path / "wide.png", max_seq_len=90, max_pixels=9000
    )
    draw_lengths([7], [0], [], tmp_path / "one.png")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_summary_names_tokens_that_text_spells(tiny_folder: Path, tmp_path: Path) -> None:
    record = {"question": "Find <|object_ref_start|>it", "answer": "<|box_start|>(1,2),(3,4)<|box_end|>"}
    (tmp_path / "marks.jsonl").write_text(json.dumps(record))
    facts = facts_of(tiny_folder, tmp_path / "marks.jsonl")
    text = summary(facts)
    assert (
        "text spells <|object_ref_start|>, <|box_start|>, <|box_end|>, which is encoded as letters, in"
        in text
    )
    marked = facts_of(tiny_folder, tmp_path / "marks.jsonl", text_tokens="grounding")
    assert "spell <" not in summary(marked) and marked[0].tokens < facts[0].tokens


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_images_that_show_next_to_nothing_are_named(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    greys = {"black": 1, "dark": 20, "light": 235, "white": 254}
    for name, grey in greys.items():
        Image.new("RGB", (60, 60), (grey, grey, grey)).save(tmp_path / f"{name}.png")
    records = [{"image": f"{name}.png", "question": "What is it?", "answer": "A wall."} for name in greys]
    (tmp_path / "data.json").write_text(json.dumps(records))
    transform = Examiner(load_transform(tiny_folder, dtype=dtype))
    found = read_facts(vision_chat_dataset(transform, source=tmp_path / "data.json"))
    expected = [("an image is nearly black",), (), (), ("an image is nearly white",)]
    assert [facts.notes for facts in found] == expected
    assert "an image is nearly black" in summary(found, None)
