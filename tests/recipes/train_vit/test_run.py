"""The classification recipe: what it writes, its arithmetic, several processes, resuming."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from launch import Run, run
from safetensors.torch import load_file
from torchtune.config import instantiate

from torchtune_qwenvl.checkpoints.vision_encoder import load_vision_encoder, merge_vision_encoder
from torchtune_qwenvl.data.labelled import digits, split_off
from torchtune_qwenvl.exporting.classifier import load_classifier
from torchtune_qwenvl.settings.config import packaged_names, resolve
from torchtune_qwenvl.settings.recipes import recipe_of
from torchtune_qwenvl.training.watch.history import read_curves

TINY = (
    *("model.embed_dim=32", "model.depth=2", "model.num_heads=2", "num_workers=0", "batch_size=8"),
    *("epochs=2", "max_steps_per_epoch=4", "val_share=0.05", "run_val_every_n_steps=4"),
    "lr_scheduler.num_warmup_steps=2",
)
# Everything that draws random numbers or keeps a state at once.
ALL = (
    *TINY,
    *("num_workers=1", "model.dropout=0.1", "save_every_n_steps=2", "ema_decay=0.9", "layer_decay=0.8"),
    *("label_smoothing=0.1", "gradient_accumulation_steps=2"),
    "mixes=[{_component_: torchvision.transforms.v2.MixUp, alpha: 0.5}]",
    "train_transforms=[{_component_: torchvision.transforms.v2.RandomCrop, size: 8, padding: 1}, "
    "{_component_: torchtune_qwenvl.data.labelled.ToFloat}]",
    "val_transforms=[{_component_: torchtune_qwenvl.data.labelled.ToFloat}]",
)


def train(out: Path, *overrides: str, config: str = "vit/digits", **options) -> Run:
    return run(out, *overrides, config=config, recipe="train_vit", **options)


def test_from_the_command_line(tmp_path: Path) -> None:
    """`tune run`, as the README has it; then the written classifier is what was validated."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torchtune._cli.tune", "run", "torchtune_qwenvl/recipes/train_vit.py"]
    command += ["--config", "vit/digits", f"output_dir={out}", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    curves = read_curves(out)
    assert [step for step, _ in curves["loss"]] == [*range(1, 9)]
    assert [step for step, _ in curves["val_top1"]] == [4, 8]
    for name in ("curves.png", "confusion.png", "predictions.png", "model/config.json"):
        assert (out / name).stat().st_size > 100, name
    assert not list(out.rglob("*.pt*"))
    results = json.loads((out / "results.json").read_text())
    classifier = load_classifier(out)
    _, held_out = split_off(digits(), 0.05, seed=0)
    logits = classifier.logits(list(held_out.sources))
    labels = torch.tensor(held_out.labels)
    assert (logits.argmax(dim=1) == labels).float().mean().item() == pytest.approx(results["val_top1"])
    assert F.cross_entropy(logits, labels).item() == pytest.approx(results["val_loss"], rel=1e-5)
    ((best, probability), *_) = classifier([held_out.sources[0]])[0]
    assert best == classifier.class_names[int(logits[0].argmax())] and 0 < probability < 1


def files_of(finished: Run) -> list[bytes]:
    names = ("model/model.safetensors", "classifier.json", "results.json")
    return [(finished.output_dir / name).read_bytes() for name in names]


@pytest.fixture(scope="module", params=[1, 2])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    finished = train(tmp_path_factory.mktemp("reference") / "out", *ALL, processes=request.param)
    assert set(finished.codes) == {0}, finished.printed
    return finished


@pytest.mark.parametrize("kill_at", ["step 4", "step 7", "rename"])
def test_killed_and_resumed(reference: Run, tmp_path: Path, kill_at: str) -> None:
    processes = len(reference.codes)
    killed = train(tmp_path / "out", *ALL, processes=processes, kill_at=kill_at)
    assert -9 in killed.codes and not (tmp_path / "out/model").exists()
    resumed = train(tmp_path / "out", *ALL, "resume=true", processes=processes)
    assert set(resumed.codes) == {0}, resumed.printed
    assert files_of(resumed) == files_of(reference)
    curves, whole = read_curves(tmp_path / "out"), read_curves(reference.output_dir)
    assert {"loss", "grad_norm", "lr_stem", "lr_head", "val_loss", "val_top1", "val_top5"} <= whole.keys()
    for name in ("loss", "grad_norm", "lr_stem", "lr_head", "val_loss", "val_top1", "val_top5"):
        assert curves[name] == whole[name], name


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """The same images per step; sums differ in their order alone."""
    options = (*TINY, "ema_decay=0.5", "clip_grad_norm=0.5")
    one = train(tmp_path / "one", *options)
    two = train(tmp_path / "two", *options, "batch_size=4", processes=2)
    assert set(one.codes + two.codes) == {0}, one.printed + two.printed
    curves = [read_curves(r.output_dir) for r in (one, two)]
    for name in ("loss", "grad_norm", "val_loss", "val_top1"):
        ours, theirs = ([value for _, value in each[name]] for each in curves)
        assert ours == pytest.approx(theirs, rel=2e-4), name
    weights = [load_file(r.output_dir / "model/model.safetensors") for r in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=2e-4)


def test_the_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """Without augmentation: torch's Adam on mean cross-entropy, batch after batch."""
    options = (
        *TINY,
        "shuffle=false",
        "optimizer=torch.optim.Adam",
        "optimizer.lr=1.0e-3",
        "optimizer.weight_decay=0.0",
        "lr_scheduler=null",
        "label_smoothing=0.0",
        "clip_grad_norm=null",
        "train_transforms=[]",
    )
    finished = train(tmp_path / "out", *options)
    assert finished.codes == [0], finished.printed
    cfg = resolve("vit/digits", [*options])
    torch.manual_seed(cfg.seed)
    images, _ = split_off(digits(), 0.05, cfg.seed)
    model = instantiate(cfg.model)
    model.reset_classifier(10, cfg.global_pool)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.optimizer.lr)
    losses = []
    for step in range(8):
        rows = range(8 * (step % 4), 8 * (step % 4) + 8)
        pixels = torch.stack([images.image(i) for i in rows])
        patches = pixels.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(8 * 16, 4)
        loss = F.cross_entropy(
            model(patches, [[1, 4, 4]] * 8), torch.tensor(images.labels[rows.start : rows.stop])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [value for _, value in read_curves(finished.output_dir)["loss"]] == pytest.approx(losses, rel=1e-5)


def test_skipped_images_count_for_nothing(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(12):
        file = tmp_path / "photos" / f"c{number % 2}" / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * number).save(file)
    (tmp_path / "photos/c1/03.png").write_bytes(b"")
    component = "dataset=torchtune_qwenvl.data.labelled.labelled_images"
    source = (component, f"dataset.source={tmp_path}/photos", "dataset.channels=1", "batch_size=4")
    options = (*TINY, *source, "epochs=1")
    raised = train(tmp_path / "a", *options, "val_share=0.0", "train_transforms=[]")
    assert raised.codes == [1] and "photos/c1/03.png" in raised.printed
    skipped = train(tmp_path / "b", *options, "val_share=0.0", "train_transforms=[]", "on_bad_sample=skip")
    assert skipped.codes == [0], skipped.printed
    assert read_curves(skipped.output_dir)["skipped_samples"][-1][1] == 1
    assert not (tmp_path / "b/results.json").exists() and (tmp_path / "b/curves.png").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train=body"], "'train': expected 'everything' or 'last_n' or 'lora' or 'head', got 'body'"),
        (["train=last_n", "last_n=3"], "last_n: the encoder has 2 layers, got 3"),
        (["layer_decay=1.5"], "'layer_decay': expected a number greater than 0 and at most 1, got 1.5"),
        (["ema_decay=1.0"], "'ema_decay': expected a number greater than 0 and less than 1 or null"),
        (["~optimizer.lr"], "No learning rate: set optimizer.lr"),
        (["global_pool=cls"], 'pool "cls": this encoder has no cls token'),
        (
            ["train=lora", "lora.attn_modules=[qkv]"],
            "'lora.attn_modules': expected a list of q_proj, k_proj, v_proj, output_proj",
        ),
        (["model.patch_size=3"], "8 x 8 pixels after the transforms: expected multiples of 3"),
        (["dataset=torchtune_qwenvl.demo.one_thread"], "dataset: expected labelled images, got a NoneType"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, overrides: list[str], message: str) -> None:
    failed = train(tmp_path / "out", *TINY, *overrides)
    assert failed.codes == [1] and message in failed.printed


def test_configs_belong_to_their_recipe(tmp_path: Path) -> None:
    for name in packaged_names():
        assert resolve(name).recipe == recipe_of(name)
    with pytest.raises(ValueError, match=r"Unknown config key 'pack_to'.*vit/base.yaml lists every key"):
        resolve("vit/digits", ["pack_to=3"])
    wrong = run(tmp_path / "out", config="vit/digits")
    assert wrong.codes == [1] and "is for the recipe train_vit, not for finetune" in wrong.printed


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny whole checkpoint, photos of three classes next to it."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("tower")
    tiny.save_tiny_folder(folder / "checkpoint")
    for number in range(12):
        file = folder / "photos" / "abc"[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 60), (20 * number, 100 * (number % 3), 30)).save(file)
    return folder


# What changes of the file's three blocks, by train=.
CHANGED = {
    "head": (),
    "last_n": ("blocks.2.", "merger."),
    "lora": (".attn.qkv.weight",),
    "everything": ("patch_embed.", "blocks.", "merger."),
}


@pytest.mark.parametrize(
    ("mode", "processes"), [("head", 1), ("last_n", 1), ("lora", 1), ("lora", 2), ("everything", 1)]
)
def test_an_encoder_goes_back_into_its_model(tower: Path, tmp_path: Path, mode: str, processes: int) -> None:
    transforms = "[{_component_: torchvision.transforms.v2.Resize, size: [56, 56]}]"
    options = (f"checkpoint_dir={tower}/checkpoint", f"dataset.source={tower}/photos", f"train={mode}")
    options += ("num_workers=0", "batch_size=4", "epochs=1", "last_n=1", "optimizer.lr=0.01", "dtype=fp32")
    options += (f"train_transforms={transforms}", f"val_transforms={transforms}", "val_share=0.3")
    done = train(tmp_path / "out", *options, config="vit/imagefolder", processes=processes)
    assert set(done.codes) == {0}, done.printed
    before = load_vision_encoder(tower / "checkpoint").state_dict()
    after = load_vision_encoder(tmp_path / "out/model")
    changed = {n for n, w in after.state_dict().items() if n in before and not torch.equal(w, before[n])}
    assert after.head.out_features == 3
    if mode == "everything":
        assert len(changed) > 10
    merge_vision_encoder(after, tower / "checkpoint", tmp_path / "whole")
    files = [load_file(folder / "model.safetensors") for folder in (tower / "checkpoint", tmp_path / "whole")]
    differ = {name for name in files[0] if not torch.equal(files[0][name], files[1][name])}
    assert files[0].keys() == files[1].keys()
    assert all("visual." in name and any(part in name for part in CHANGED[mode]) for name in differ), differ
    assert bool(differ) == (mode != "head")
    classifier = load_classifier(tmp_path / "out")
    assert classifier([tower / "photos/a/0.png"])[0][0][0] in classifier.class_names == ("a", "b", "c")
