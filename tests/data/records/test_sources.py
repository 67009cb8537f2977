"""Where records come from: JSON, JSONL, parquet, folders, globs, `datasets`; what broken files answer."""

import io
import json
import pickle
import shlex
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from torchtune_qwenvl.data.records.json_records import JsonRecords
from torchtune_qwenvl.data.records.sources import open_source
from torchtune_qwenvl.settings.overrides import parse_override
from torchtune_qwenvl.transforms.errors import BadSample

ROWS = [{"question": f"q{i}", "answer": "ä\n\u2028"} for i in range(5)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, rows: Any, **kwargs: Any) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, **kwargs), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.jsonl with rows 0 and 1, b.json with 2 and 3, c.parquet with 4."""
    found = tmp_path / "folder"
    found.mkdir()
    write_jsonl(found / "a.jsonl", ROWS[:2])
    write_json(found / "b.json", ROWS[2:4], indent=2)
    write_parquet(found / "c.parquet", ROWS[4:])
    (found / "notes.txt").write_text("not data")
    return found


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=st.lists(JSON_VALUES, min_size=1, max_size=6),
    indent=st.sampled_from([None, 1, 4]),
    ascii_only=st.booleans(),
    bom=st.booleans(),
    head=st.sampled_from(["", "\n", " \r\n\t"]),
)
def test_any_json_array_is_indexed(
    tmp_path: Path, rows: list[Any], indent: int | None, ascii_only: bool, bom: bool, head: str
) -> None:
    """Property: element by element what json.load reads, from byte offsets."""
    text = head + json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + "\n"
    path = tmp_path / "x.json"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    records = JsonRecords(path)
    assert [records[i] for i in range(len(records))] == rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_jsonl_allows_blank_lines_and_names_the_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(end.join(['{"a": "ä"}', "", ' {"a": 2} ', "  ", '{"a": [3]}']).encode("utf-8-sig"))
    records = JsonRecords(path)
    assert [records[i] for i in range(len(records))] == [{"a": "ä"}, {"a": 2}, {"a": [3]}]
    assert records.where(2) == f"{path}, sample 2 (from 0; line 5)"
    assert records.folder(0) == tmp_path


def test_json_names_the_line(folder: Path) -> None:
    assert open_source(folder / "b.json").where(1) == f"{folder / 'b.json'}, sample 1 (from 0; line 6)"


def test_heterogeneous_content_is_no_problem(tmp_path: Path) -> None:
    rows = [{"content": "text"}, {"content": [{"type": "image", "path": "a"}]}]
    for path in (write_jsonl(tmp_path / "x.jsonl", rows), write_json(tmp_path / "x.json", rows)):
        records = open_source(str(path))
        assert [records[i] for i in range(2)] == rows


def test_files_folders_globs_and_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (
        folder,
        str(folder / "[abc].*"),
        [folder / "a.jsonl", str(folder / "[b-c].*")],
        OmegaConf.create([str(folder)]),
    ):
        records = open_source(source)
        assert [records[i] for i in range(len(records))] == ROWS
        assert records.where(3).startswith(f"{folder / 'b.json'}, sample 1 (")
        assert records.where(4) == f"{folder / 'c.parquet'}, sample 0 (from 0)"
        assert records.folder(4) == folder
    monkeypatch.chdir(folder)
    assert len(open_source("a.jsonl")) == 2


def test_json_and_parquet_builders_with_local_files(folder: Path) -> None:
    files = {"train": str(folder / "b.json"), "test": [str(folder / "a.jsonl")]}
    assert open_source("json", data_files=files)[0] == ROWS[2]
    assert open_source("json", data_files=OmegaConf.create(files), split="test")[0] == ROWS[0]
    assert open_source("parquet", data_files=str(folder / "c.parquet"))[0] == ROWS[4]
    assert len(open_source(folder, data_files=["a.jsonl", "c.parquet"])) == 3
    with pytest.raises(ValueError, match="split 'valid': data_files has train, test"):
        open_source("json", data_files=files, split="valid")


def test_split_slices(folder: Path) -> None:
    records = open_source(folder, split="train[2:3]+train[-40%:]")
    assert [records[i] for i in range(len(records))] == [ROWS[2], *ROWS[3:]]
    assert records.where(0).startswith(f"{folder / 'b.json'}, sample 0 (") and records.folder(0) == folder
    with pytest.raises(ValueError, match="split 'test': local files are the split train; name the file"):
        open_source(folder, split="test")


def test_parquet_images_stay_encoded(tmp_path: Path) -> None:
    """Images stay encoded, inside lists too: the transform decodes them, with its pixel limit."""
    png = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(png, "PNG")
    features = datasets.Features({"images": datasets.List(datasets.Image()), "image": datasets.Image()})
    image, stored = {"bytes": png.getvalue(), "path": None}, {"bytes": png.getvalue()}
    table = datasets.Dataset.from_dict({"images": [[image, image]], "image": [image]}, features=features)
    table.to_parquet(str(tmp_path / "x.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "two"))
    for source in (tmp_path / "x.parquet", table, tmp_path / "saved", tmp_path / "two"):
        records = open_source(source)
        assert len(records) == 1
        assert records[0] == {"images": [stored, stored], "image": stored}
    assert len(open_source(tmp_path / "two", split="test")) == 1


def test_keys_that_arrow_fills_in_are_removed_everywhere() -> None:
    given = [{"tools": [None, {"a": 1}, {"b": {"c": None, "d": [2]}}]}, {"tools": None}]
    records = open_source(datasets.Dataset.from_list(given))
    assert records[0] == {"tools": [None, {"a": 1}, {"b": {"d": [2]}}]}
    assert records[1] == {"tools": None}


def test_datasets_builders(tmp_path: Path) -> None:
    """Anything `datasets` loads, here its csv builder."""
    (tmp_path / "x.csv").write_text("question,answer\nq,a\nr,b\n")
    records = open_source("csv", data_files=str(tmp_path / "x.csv"))
    assert records[1] == {"question": "r", "answer": "b"}
    assert records.where(1) == "csv (train), sample 1 (from 0)"
    with pytest.raises(ValueError, match="one dataset with numbered rows, got IterableDataset"):
        open_source("csv", data_files=str(tmp_path / "x.csv"), streaming=True)


def test_records_travel_to_workers(folder: Path) -> None:
    records = pickle.loads(pickle.dumps(open_source(folder)))
    assert [records[i] for i in range(len(records))] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b"", "expected a JSON array of records, the file is empty"),
        ("x.json", b"[]", "expected at least one record, the file has none"),
        ("x.jsonl", b"\n \n", "expected at least one record, the file has none"),
        ("x.json", b'{"a": 1}\n{"a": 2}', r"it starts with '\{\"a\": 1\}.*belongs into a .jsonl file"),
        ("x.json", b'[{"a": 1},\n {"a"', "perhaps truncated: .*line 2 column 6.*correct the file"),
        ("x.json", b'[{"a": 1}', r"perhaps truncated: Expecting ',' or '\]': line 1 column 10"),
        ("x.json", b'[{"a": 1} {"a": 2}]', r"Expecting ',' or '\]'"),
        ("x.json", b"[1] 2", "Text after the array"),
        ("x.json", b'["\xff"]', "expected UTF-8 text"),
        ("x.parquet", b"PAR1 not really", "expected a parquet file"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_broken_line_is_one_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n{"a":\n{"a": 3}\n')
    records = open_source(tmp_path / "x.jsonl")
    assert records[2] == {"a": 3}
    with pytest.raises(BadSample, match=r"not valid JSON: .*correct or remove the line"):
        records[1]


@pytest.mark.parametrize("source", ["nothing.json", "nothing/*.jsonl", "empty"])
def test_nothing_there(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=rf"dataset source {source.replace('*', '.')}: expected a file ending in"
    ):
        open_source(source)


def test_unknown_file_and_unknown_dataset(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"notes.txt: expected a file ending in .json, .jsonl, .parquet"):
        open_source(folder / "notes.txt")
    for name, mark in (("t.csv", ","), ("t.tsv", "\t")):
        (folder / name).write_text(f"question{mark}answer\nq{mark}a\n")
        with pytest.raises(ValueError, match=rf"{name}: expected .* Convert it, or read it by") as error:
            open_source(folder / name)
        words = shlex.split(str(error.value).partition("`datasets`: ")[2])
        keys = {path[-1]: value for path, value in map(parse_override, words)}
        assert open_source(**keys)[0] == {"question": "q", "answer": "a"}
    with pytest.raises(ValueError, match="dataset source nobody/nothing: no file, folder or glob here"):
        open_source("nobody/nothing")
