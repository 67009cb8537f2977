"""What a key takes: by type hints, by the table, and through keywords that a component passes on."""

from pathlib import Path
from typing import Literal

import pytest

from torchtune_qwenvl.data import vision_chat_dataset
from torchtune_qwenvl.settings.config import parse_arguments, resolve
from torchtune_qwenvl.settings.help import help_text, keys_of, page
from torchtune_qwenvl.settings.kinds import kind_of_hint, number, whole
from torchtune_qwenvl.settings.notes import notes

NAME = "qwen2_5_vl/3B_lora"
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("hint", "fits", "refused"),
    [
        (bool, [True], [1, "false", None]),
        (int, [3, -3], [3.0, True, "3"]),
        (float, [3, 0.5], [True, "0.5", None]),
        (float | None, [1, None], ["1"]),
        (str | Path | None, ["", "a", None], [3]),
        (Literal["a", "b"] | bool, ["a", False], ["c", None]),
    ],
)
def test_kinds_of_type_hints(hint, fits: list, refused: list) -> None:
    kind = kind_of_hint(hint)
    assert all(map(kind.fits, fits)) and not any(map(kind.fits, refused))


def test_hints_that_only_the_component_knows_are_left_to_it() -> None:
    assert kind_of_hint(list[int]) is None and kind_of_hint(int | list[int]) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None, 10**400, 0, -1])
def test_a_rate_is_a_finite_number_above_0(value) -> None:
    with pytest.raises(ValueError, match=r"'optimizer\.lr': expected a number greater than 0, got"):
        number(above=0).check("optimizer.lr", value)
    number(above=0).check("optimizer.lr", 1e-30)
    assert whole(1, 5).says == "a whole number from 1 to 5"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.image_rot=x", "'dataset.image_rot'.*no such argument. Did you mean 'image_root'"),
        ("tokenizer.max_pixel=3", "'tokenizer.max_pixel'.*Did you mean 'max_pixels'"),
        ("metric_logger.log_dri=x", "'metric_logger.log_dri'.*Did you mean 'log_dir'"),
        ('dataset.allow_urls="false"', "'dataset.allow_urls': expected true or false, got 'false'"),
        ("model.lora_alpha=abc", "'model.lora_alpha': expected a number"),
        ("model.image_mean=${nope}", "model.image_mean.*nope"),
        ("optimizer.fused=3", "'optimizer.fused': expected true or false or null, got 3"),
        ("lr_scheduler.last_epoch=abc", "'lr_scheduler.last_epoch': expected a whole number, got 'abc'"),
        ("optimizer={", "'optimizer': expected a value in YAML"),
        ("a..b=1", "Expected key=value with a key"),
        ("~batch_size", "'batch_size' was removed: ~ removes arguments of components only"),
        ("epochs=0", "'epochs': expected a whole number from 1"),
        ("recipe=[1]", "'recipe'"),
    ],
)
def test_refused_before_anything_is_loaded(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(NAME, ["dataset.source=x.json", override])


def test_options_of_load_dataset_are_taken_where_they_are_read(tmp_path: Path) -> None:
    assert resolve(NAME, ["dataset.source=csv", "dataset.sep=;", "dataset.num_proc=2"]).dataset.sep == ";"
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(ValueError, match="no argument 'image_rot', nor has datasets"):
        vision_chat_dataset(lambda sample: sample, source=str(tmp_path / "a.jsonl"), image_rot="x")
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"num_proc: arguments of .*, which does not read .*a\.jsonl"):
            source = {"source": str(tmp_path / "a.jsonl"), "num_proc": 2, "streaming": streaming}
            vision_chat_dataset(lambda sample: sample, **source)


def test_a_run_needs_what_has_no_default() -> None:
    with pytest.raises(ValueError, match=r"'dataset' is not set: give dataset.source=data.json"):
        parse_arguments(["--config", NAME])
    component = "dataset=torchtune_qwenvl.data.vision_chat_dataset"
    with pytest.raises(ValueError, match=r"'dataset.source' is not set: .* needs it"):
        parse_arguments(["--config", NAME, component])
    with pytest.raises(ValueError, match="exclude each other"):
        parse_arguments(["--config", NAME, "dataset.source=x", "optimizer_in_bwd=true"])
    with pytest.raises(ValueError, match="'checkpoint_dir' is not set"):
        parse_arguments(["--config", "vit/imagefolder", "dataset.source=x"], "train_vit")


VIT = ("vit/imagefolder", "checkpoint_dir=x")
MIXUP = "mixes=[{_component_: torchvision.transforms.v2.MixUp, alpha: 0.2}]"


@pytest.mark.parametrize(
    ("recipe", "name", "given", "message"),
    [
        ("train_vit", VIT, ["dataset.root=x"], "'dataset.root': .*labelled_images has no .* 'source'?"),
        ("finetune", (NAME,), ["dataset.root=x"], "'dataset.root': .*_dataset has no .* mean 'source'?"),
        ("train_vit", VIT, ["dataset.channels=1"], "'dataset.source' is not set: .*labelled_images needs it"),
        ("train_vit", VIT, ["dataset.source=x", "val_dataset.split=a"], "'val_dataset.source' is not set"),
        *(
            (recipe, name, ["dataset.source=x", "lr_scheduler=torch.optim.lr_scheduler.StepLR"], "step_size'")
            for recipe, name in (("train_vit", VIT), ("finetune", (NAME,)))
        ),
        (
            "train_vit",
            VIT,
            ["dataset.source=x", "val_transforms=[{_component_: torchvision.transforms.v2.CenterCrop}]"],
            "'val_transforms.0.size' is not set",
        ),
    ],
)
def test_what_a_component_of_a_recipe_lacks(recipe: str, name: tuple, given: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", *name, "~lr_scheduler.num_warmup_steps", *given], recipe)


def test_what_recipes_give_is_not_asked_for() -> None:
    parse_arguments(["--config", *VIT, "dataset.source=x", MIXUP], "train_vit")
    box_iou = "evaluate=[{_component_: torchtune_qwenvl.training.watch.box_overlap.box_iou, source: x}]"
    given = ["checkpoint_dir=x", "dataset=[{source: a}, {source: b}]", "val_dataset.source=c", box_iou]
    parse_arguments(["--config", NAME, *given])


def test_settings_that_do_less_than_they_say_are_noted() -> None:
    given = ["model.encoder_trainable=true", "learning_rates.fusion=1e-4", "max_steps_per_epoch=50"]
    full, rate, warmup = notes(resolve(NAME, given))
    assert full == "model.encoder_trainable=true means 'full'"
    assert rate.startswith("learning_rates.fusion=0.0001 changes nothing")
    assert warmup.startswith("lr_scheduler.num_warmup_steps=50 is not less than the run's 50 steps")
    assert notes(resolve(NAME), total_steps=51) == [] and len(notes(resolve(NAME), total_steps=40)) == 1


def test_help_has_every_key(capsys: pytest.CaptureFixture) -> None:
    text = help_text("finetune")
    names = [key.name for key in keys_of("finetune")]
    assert {"learning_rates.encoder", "optimizer.lr", "on_nonfinite"} <= set(names)
    assert "\n_component_" not in text and "optimizer=torch.optim.AdamW\n" in text
    assert all(f"\n{name}=" in text or f"\n{name}\n" in text for name in names)
    assert "batch_tokens=null\n    tokens per process and forward pass, padding included: put as many" in text
    assert "clip_grad_norm=null\n    Takes a number greater than 0 or null." in text
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"], "train_vit")
    assert stop.value.code == 0 and "\nlayer_decay=1.0\n" in capsys.readouterr().out
    assert "checkpoint_dir" in help_text("generate") and "temperature" in help_text("generate")


def test_the_page_is_up_to_date() -> None:
    """python -m torchtune_qwenvl.settings.help > docs/reference/keys.md"""
    assert (ROOT / "docs/reference/keys.md").read_text(encoding="utf-8") == page()
