"""What a resumed run may change: every key of the configs is honoured or refused by name."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from omegaconf import OmegaConf
from pyarrow import parquet

from torchtune_qwenvl.settings.files import PACKAGED
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.resume.identity import fingerprint
from torchtune_qwenvl.training.resume.meta import Meta
from torchtune_qwenvl.training.resume.rules import RULES, Rule, flattened, rule_of

KEYS = {
    name: sorted(flattened(OmegaConf.to_container(OmegaConf.load(PACKAGED / name))))
    for name in ("base.yaml", "vit/base.yaml")
}
CASES = [(name, key) for name, keys in KEYS.items() for key in keys]

REFUSED = (
    *("seed", "shuffle", "dtype", "optimizer._component_", "optimizer_in_bwd", "recipe"),
    *("model.lora_rank", "model._component_", "dataset._component_", "dataset.style", "train", "last_n"),
    *(
        "tokenizer.max_seq_len",
        "tokenizer.max_pixels",
        "optimizer.momentum",
        "optimizer.amsgrad",
        "ema_decay",
    ),
    *("dataset.datasets.0.weight", "dataset.datasets.1.style", "val_share", "lora.rank", "somebodys.own"),
)
HONOURED = (
    *("optimizer.lr", "optimizer.weight_decay", "learning_rates.encoder", "lr_scheduler.num_warmup_steps"),
    *("epochs", "batch_size", "gradient_accumulation_steps", "pack_to", "batch_tokens", "num_workers"),
    *("log_every_n_steps", "output_dir", "checkpoint_dir", "dataset.source", "dataset.datasets.3.source"),
    *("evaluate.0._component_", "keep_last_n", "model.lora_dropout", "head_lr", "lora.dropout"),
)


def meta_of(settings: dict[str, Any], content: dict[str, str] | None = None) -> Meta:
    return Meta("run", 1, 1, "cpu", resume.Progress(), {}, settings, content or {})


@pytest.mark.parametrize(("name", "key"), CASES)
def test_every_key_is_honoured_or_refused_by_name(name: str, key: str) -> None:
    assert any(key == rule or key.startswith(f"{rule}.") for rule in RULES), f"{key} has no rule"
    old, new = {"other": 0, key: "before"}, {"other": 0, key: "now"}
    identity = resume.Identity(new)
    if rule_of(key) is Rule.HONOURED:
        changed = identity.check(meta_of(old), Path("step_4"))
        assert changed in ({key: ("before", "now")}, {})
        return
    with pytest.raises(ValueError, match=rf"step_4 cannot be resumed[^#]*{key}: before in that run, now now"):
        identity.check(meta_of(old), Path("step_4"))


@pytest.mark.parametrize("key", REFUSED)
def test_refused(key: str) -> None:
    assert rule_of(key) is Rule.REFUSED


@pytest.mark.parametrize("key", HONOURED)
def test_honoured(key: str) -> None:
    assert rule_of(key) is Rule.HONOURED


def test_all_that_is_refused_is_named_at_once(tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text("[1, 2]")
    settings = {"seed": 0, "model.lora_rank": 4, "dataset.source": str(data), "batch_size": 1}
    first = resume.Identity(settings)
    saved = meta_of(settings, first.content)
    assert resume.Identity({**settings, "batch_size": 2}).check(saved, tmp_path) == {"batch_size": (1, 2)}
    data.write_text("[2, 1]")
    with pytest.raises(ValueError) as error:
        resume.Identity({**settings, "seed": 1, "model.lora_rank": 8}).check(saved, tmp_path)
    for line in (
        "seed: 0 in that run, 1 now",
        "model.lora_rank: 4 in that run, 8 now",
        f"dataset.source: the content of {data} has changed since",
    ):
        assert line in str(error.value)
    assert resume.Identity(settings).check(saved, tmp_path, accept_changed_data=True) == {}


def test_another_data_file_is_named_with_the_numbers_of_samples(tmp_path: Path) -> None:
    """A file of lines, an array, a table, and one of which the number is not known."""
    few, many, table, broken = (tmp_path / name for name in ("few.jsonl", "many.json", "t.parquet", "b.json"))
    few.write_text("{}\n")
    many.write_text("[1, 2]")
    parquet.write_table(pyarrow.table({"a": [1, 2, 3]}), table)
    broken.write_text("[")
    before, *others = (resume.Identity({"dataset.source": str(path)}) for path in (few, many, table, broken))
    saved = Meta("run", 1, 1, "cpu", resume.Progress(), {}, before.settings, before.content, before.samples)
    for other, count in zip(others, (" (2 samples)", " (3 samples)", ""), strict=True):
        with pytest.raises(ValueError) as error:
            other.check(saved, tmp_path)
        now = f"{other.settings['dataset.source']}{count} now, whose content differs"
        assert f"dataset.source: {few} (1 sample) in that run, {now}" in str(error.value)
    few.write_text("{}\n{}\n")
    with pytest.raises(ValueError, match=r"few.jsonl has changed since: 1 sample in that run, 2 now\."):
        resume.Identity(before.settings).check(saved, tmp_path)


def test_data_may_move(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").write_text("{}\n")
        (tmp_path / name / "cat.jpg").write_bytes(name.encode())  # of media only the names count
    here, there = (
        {"dataset.source": str(tmp_path / name), "checkpoint_dir": str(tmp_path / name)}
        for name in ("here", "there")
    )
    saved = meta_of(here, resume.Identity(here).content)
    assert set(resume.Identity(there).check(saved, tmp_path)) == {"dataset.source", "checkpoint_dir"}
    (tmp_path / "there/new.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"checkpoint_dir: .*there holds other files"):
        resume.Identity(there).check(saved, tmp_path, accept_changed_data=True)
    assert fingerprint(tmp_path / "nowhere") is None and fingerprint(Path("x" * 5000)) is None


def test_large_files_are_sampled_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchtune_qwenvl.training.resume import identity

    monkeypatch.setattr(identity, "WHOLE", 1000)
    monkeypatch.setattr(identity, "BLOCK", 10)
    file = tmp_path / "large"
    found = set()
    for at in (0, 2999, None):
        content = bytearray(3000)
        if at is not None:
            content[at] = 1
        file.write_bytes(content)
        found.add(fingerprint(file))
    assert len(found) == 3
