"""The README does what it says: its Python runs, on a tiny folder; its configs, keys and links exist."""

import json
import re
from pathlib import Path

import pytest
import tiny
from videos import encode

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import vision_chat_dataset
from torchtune_qwenvl.demo import write_tiny_checkpoint
from torchtune_qwenvl.models import FAMILIES
from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.settings.files import packaged_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PUBLISHED, TRAINED = "/tmp/Qwen2.5-VL-3B-Instruct", "outputs/qwen2_5_vl_3B"
LORA = {
    "decoder_trainable": "lora",
    "encoder_trainable": "frozen",
    "fusion_trainable": "frozen",
    "lora_attn_modules": ["q_proj", "v_proj"],
    "lora_rank": 2,
    "lora_alpha": 4,
}


def blocks(language: str) -> list[str]:
    """Code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as the README's reader has it: a downloaded folder, a run's outputs, an image."""
    from torchtune_qwenvl import load_model, save_model
    from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter

    write_tiny_checkpoint(str(tmp_path / "published"))
    model = load_model(tmp_path / "published", **LORA)
    (tmp_path / TRAINED).mkdir(parents=True)
    save_model(model, tmp_path / TRAINED / "model", source=tmp_path / "published")
    save_adapter(model, tmp_path / TRAINED / "adapter", source=tmp_path / "published")
    tiny.photo(480, 640).save(tmp_path / "cat.jpg")
    encode(tmp_path / "cat.mp4", 8, codec="mpeg4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs(machine: Path, number: int, peft_without_torchao: None):
    code = blocks("python")[number].replace(PUBLISHED, str(machine / "published"))
    names: dict = {}
    exec(compile(code, f"README.md, Python block {number}", "exec"), names)
    if "pipeline = " in code:
        assert len(names["tokens"]) == int(re.search(r"\[(\d+), 2048\]", code)[1])


def test_record_examples_are_read(machine: Path):
    lines = blocks("json")[0].splitlines()
    (machine / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    transform = load_transform(machine / "published")
    samples = [*vision_chat_dataset(transform, source="data.jsonl")]
    assert [json.loads(line).keys() for line in lines] and len(samples) == 4
    said = [transform.decode([t for t in sample["labels"] if t >= 0]) for sample in samples]
    assert all(text.startswith("A cat.") for text in said)


def test_videos_of_the_data_page_are_read(machine: Path):
    guide = (ROOT / "docs" / "guides" / "data_formats.md").read_text(encoding="utf-8")
    page = guide.partition("## Videos")[2]
    rows = [json.loads(line) for line in re.search(r"```json\n(.*?)```", page, re.DOTALL)[1].splitlines()]
    encode(machine / "a.mp4", 8, codec="mpeg4")
    for i in range(2):
        tiny.photo(48, 64, seed=i).save(machine / f"{i}.jpg")
    (machine / "data.json").write_text(json.dumps(rows))
    samples = [*vision_chat_dataset(load_transform(machine / "published"), source="data.json")]
    assert [len(sample["encoder_input"]["vision"]["images"]) for sample in samples] == [1, 2, 1]


def test_configs_that_are_named_exist():
    named = re.findall(r"--config ([a-z0-9_]+/[A-Za-z0-9_]+)", README)
    for path, alternatives, kinds in re.findall(r"`(\w+)/\{([\w,]+)\}_\{([\w,]+)\}`", README):
        named += [f"{path}/{size}_{kind}" for size in alternatives.split(",") for kind in kinds.split(",")]
    assert len(named) > 5 and set(named) <= set(packaged_names())
    resolve(
        "qwen2_5_vl/3B_lora", ["dataset.source=data.json", "on_bad_sample=skip", "dataset.allow_urls=true"]
    )
    resolve("qwen2_5_vl/7B_full", ["save_every_n_steps=500", "resume=true"])


def test_keys_that_are_named_exist():
    cfg = resolve("qwen2_5_vl/3B_lora", ["dataset.source=data.json"])
    for key in ("tokenizer.max_seq_len", "learning_rates.encoder", "model.lora_rank", "on_bad_sample"):
        assert key.partition(".")[2] in README or key in README
        node = cfg
        for part in key.split("."):
            node = node[part]


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", README)
    assert len(targets) > 5
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_every_family_is_named():
    spoken = README.lower().replace("-", "").replace(".", "").replace(" ", "")
    missing = [name for name in FAMILIES if name.replace("_", "") not in spoken]
    assert not missing


def test_readme_is_short():
    assert len(README.splitlines()) < 200
