"""`vit/cifar10_seed` is a tutorial's run: its settings, and that it runs on files in CIFAR-10's format."""

import json
import re
from pathlib import Path

import numpy as np
from faults.campaign import campaign_size
from launch import run
from torchtune.config import instantiate

from torchtune_qwenvl.checkpoints.vision_encoder import load_vision_encoder
from torchtune_qwenvl.settings.config import resolve


def test_the_tutorials_settings() -> None:
    cfg = resolve("vit/cifar10_seed")
    model = instantiate(cfg.model)
    model.reset_classifier(10, cfg.global_pool)
    assert sum(p.numel() for p in model.parameters()) == 2_383_338
    assert cfg.optimizer == {"_component_": "torch.optim.Adam", "lr": 3e-4}
    assert (cfg.batch_size, cfg.epochs, cfg.model.dropout, cfg.dtype) == (64, 10, 0.1, "fp32")
    assert cfg.lr_scheduler is None and cfg.clip_grad_norm is None and not cfg.label_smoothing


def write_cifar10(root: Path, pictures: int) -> None:
    """CIFAR-10 as it is published in binary form: a class is a colour, with noise."""
    folder, random = root / "cifar-10-batches-bin", np.random.default_rng(0)
    folder.mkdir(parents=True)
    colours = random.integers(0, 256, (10, 3, 1))
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        labels = random.permutation(np.arange(pictures) % 10)
        noise = random.integers(-40, 41, (pictures, 3, 32 * 32))
        planes = (colours[labels] + noise).clip(0, 255).reshape(pictures, -1)
        rows = np.concatenate([labels[:, None], planes], axis=1).astype(np.uint8)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n")


def test_the_tutorials_run(tmp_path: Path) -> None:
    """`vit/cifar10_seed` as it is, on files in CIFAR-10's format; the loss per epoch falls and is printed."""
    epochs = campaign_size(3, 10)
    write_cifar10(tmp_path / "data", campaign_size(6, 128))
    roots = (f"dataset.root={tmp_path}/data", f"val_dataset.root={tmp_path}/data", f"epochs={epochs}")
    roots += () if epochs == 10 else ("batch_size=8",)
    done = run(tmp_path / "out", *roots, "num_workers=0", config="vit/cifar10_seed", recipe="train_vit")
    assert done.codes == [0], done.printed
    losses = [float(loss) for loss in re.findall(r"^epoch \d+: loss (\S+)$", done.printed, re.M)]
    assert len(losses) == epochs and losses[-1] < losses[0]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["per_class"])[3:5] == ["cat", "deer"] and results["val_top1"] > 0.1
    assert load_vision_encoder(tmp_path / "out/model").head.out_features == 10
    assert (tmp_path / "out/predictions.png").is_file()
    if epochs == 10:
        assert losses == sorted(losses, reverse=True) and results["val_top1"] > 0.9
