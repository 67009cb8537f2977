"""`check` finds exactly the damaged records, 1 % of them damaged in ten ways, and reports the reason.

CHECK_RECORDS=10000 pytest tests/checking/test_damaged.py     more records than the suite has time for
"""

import os
from pathlib import Path

from record_sets.damaged import WAYS, write_damaged

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.checking import Examiner, read_facts, summary
from torchtune_qwenvl.data import vision_chat_dataset

RECORDS = int(os.environ.get("CHECK_RECORDS", 1000))


def test_every_damaged_record_is_named_and_no_other(tiny_folder: Path, tmp_path: Path) -> None:
    source, damaged = write_damaged(tmp_path, RECORDS)
    assert len(damaged) == RECORDS // 100 and set(damaged.values()) == set(WAYS)
    dataset = vision_chat_dataset(Examiner(load_transform(tiny_folder)), source=source)
    facts = read_facts(dataset, num_workers=2)
    assert [f.index for f in facts] == [*range(RECORDS)]
    bad = {f.index: f for f in facts if f.kind}
    assert set(bad) == set(damaged)
    for index, way in damaged.items():
        assert (
            way in bad[index].reason
            and bad[index].where == f"{source}, sample {index} (from 0; line {index + 1})"
        )
    # No kind mixes two ways of damage. One way may give several kinds: JSON breaks in several places.
    assert len({(f.kind, damaged[f.index]) for f in bad.values()}) == len({f.kind for f in bad.values()})
    text = summary(facts, shown=RECORDS)
    assert all(f"sample {index} (from 0" in text for index in damaged)


def test_headers_alone_show_all_but_cut_off_pixels(tiny_folder: Path, tmp_path: Path) -> None:
    source, damaged = write_damaged(tmp_path, 1000)
    dataset = vision_chat_dataset(Examiner(load_transform(tiny_folder), decode=False), source=source)
    found = {f.index for f in read_facts(dataset) if f.kind}
    assert found == {index for index, way in damaged.items() if way != "cannot be decoded"}
