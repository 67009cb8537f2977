"""Train a vision encoder to classify images: from scratch, or from the encoder of any checkpoint.

    tune run torchtune_qwenvl/recipes/train_vit.py --config vit/digits
    tune run --nproc_per_node 8 torchtune_qwenvl/recipes/train_vit.py --config vit/imagefolder \\
        checkpoint_dir=/tmp/Qwen2.5-VL-3B-Instruct dataset.source=photos/ train=last_n

What is unusual: images may differ in size, the patches of all images lie flat in one batch. The loss is the
mean over the images of the whole step, on all processes. Augmentation depends on nothing but the seed, the
epoch and the number of an image. The steps themselves are training/loop.py. Every key is in
configs/vit/base.yaml.
"""

import json
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torchtune.config import instantiate
from torchtune.utils import get_logger
from torchvision.transforms.v2 import Compose

from torchtune_qwenvl.data.labelled import Augmented, EpochSampler, ImageCollate, LabelledImages, split_off
from torchtune_qwenvl.data.loader import Batch, Loader, build_loader
from torchtune_qwenvl.distributed import join_world, leave_world, shard, whole
from torchtune_qwenvl.exporting.classifier import save_classifier
from torchtune_qwenvl.modules.batch import on_device
from torchtune_qwenvl.modules.trainable import PARTS
from torchtune_qwenvl.pictures.curves import draw_curves
from torchtune_qwenvl.settings.config import check_start
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.epochs import Epochs
from torchtune_qwenvl.training.loop import Step, TrainingLoop
from torchtune_qwenvl.training.start import run_recipe
from torchtune_qwenvl.training.step.ema import MeanOfWeights
from torchtune_qwenvl.training.step.encoder_parts import (
    adapter_of,
    choose_trainable,
    parts_of,
    rates_of,
    undecayed,
)
from torchtune_qwenvl.training.step.layers import checkpoint_activations, compile_layers
from torchtune_qwenvl.training.step.optim import build_optimizer, build_scheduler
from torchtune_qwenvl.training.step.parts import GradientCheck
from torchtune_qwenvl.training.step.precision import autocast, compute_dtype
from torchtune_qwenvl.training.watch.classification import Classified, classify
from torchtune_qwenvl.training.watch.history import History, read_curves
from torchtune_qwenvl.training.watch.metrics import Meter, Work, peak_flops
from torchtune_qwenvl.training.watch.shown_classes import show_classes

log = get_logger("INFO")


class TrainViTRecipe(TrainingLoop):
    """Set up, train, finish; see `main`."""

    nothing_trained = "trained on no image at all: every image was skipped"

    def __init__(self, cfg: DictConfig) -> None:
        check_start(cfg)
        self.cfg = cfg
        self.world = join_world(cfg.device)
        self.output_dir = Path(cfg.output_dir)
        self.compute = compute_dtype(cfg.dtype)
        self.autocast = partial(autocast, self.world.device, self.compute)

    def setup(self) -> None:
        """Everything that a step needs, in the order in which one needs the other."""
        cfg, world = self.cfg, self.world
        if world.is_main:
            for component in cfg.prepare:
                instantiate(component)
        world.barrier()
        torch.manual_seed(cfg.seed)
        found = resume.find(self.output_dir, cfg.resume)
        # Before the weights: a wrong path shows at once.
        self.images, self.val_images = self.build_data()
        self.classes = self.images.class_names
        self.model = self.build_model()
        parts = parts_of(self.model, cfg.layer_decay)
        rates = rates_of(self.model, parts, cfg.optimizer.get("lr"), cfg.head_lr, cfg.layer_decay)
        self.optimizer = build_optimizer(cfg.optimizer, parts, rates, undecayed(self.model))
        self.loader = self.build_loader(self.images, cfg.train_transforms, cfg.shuffle, self.build_mixes())
        self.val_loader = self.build_loader(self.val_images, cfg.val_transforms) if self.val_images else None
        self.progress = resume.Progress()
        self.epochs = Epochs(
            self.loader,
            world,
            epochs=cfg.epochs,
            batches_per_step=cfg.gradient_accumulation_steps,
            max_steps=cfg.max_steps_per_epoch,
        )
        self.scheduler = build_scheduler(cfg.lr_scheduler, self.optimizer, self.total_steps)
        # What is random from here on (dropout) differs between ranks.
        torch.manual_seed(cfg.seed + world.rank)
        if found is not None:
            self.progress = resume.load(found, world, self.saved, self.optimizer, self.scheduler)
            if self.mean is not None:
                self.mean.go_on_from(self.progress.step)
        self.check_gradients = GradientCheck(parts)
        self.meter = Meter(world, peak_flops(world.device, cfg.device_peak_tflops))
        self.result: Classified | None = None
        if world.is_main:
            self.announce(found)

    def announce(self, found: Path | None) -> None:
        """Open the logs, and say what trains, for how long and from where."""
        self.logger = History(instantiate(self.cfg.metric_logger), self.output_dir, self.progress.step, found)
        self.logger.log_config(self.cfg)
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        trains, total = sum(n for n, trained in counts if trained), sum(n for n, _ in counts)
        held_out = f"{len(self.val_images)} to validate on" if self.val_images else "none to validate on"
        start = f"resumed from {found}, step {self.progress.step}" if found else "from the start"
        log.info(
            f"{trains:,} of {total:,} parameters train; {len(self.images)} images of {len(self.classes)} "
            f"classes, {held_out}; {self.total_steps} steps, {start}"
        )

    def build_data(self) -> tuple[LabelledImages, LabelledImages | None]:
        """Images to train and to validate on, with the same classes."""
        cfg = self.cfg
        images, val_images = instantiate(cfg.dataset), instantiate(cfg.val_dataset)
        for key, found in (("dataset", images), ("val_dataset", val_images)):
            if cfg[key] is not None and not isinstance(found, LabelledImages):
                raise ValueError(
                    f"{key}: expected labelled images, got a {type(found).__name__}. Name a function of "
                    "torchtune_qwenvl.data.labelled, or one that returns its LabelledImages."
                )
        if val_images is not None:
            return images, val_images.with_classes_of(images)
        return split_off(images, cfg.val_share, cfg.seed) if cfg.val_share else (images, None)

    def build_model(self) -> Any:
        """The encoder with a head for the classes; with `ema_decay` also the mean of its weights."""
        cfg, world = self.cfg, self.world
        model = instantiate(cfg.model)
        model.reset_classifier(len(self.classes), cfg.global_pool)
        choose_trainable(model, cfg.train, last_n=cfg.last_n, adapter=adapter_of(cfg.lora))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        model.to(world.device)
        # FSDP copies no sharded module: what is saved at the end gets its weights in this one.
        self.blank = deepcopy(model).to("meta")
        self.mean = None if cfg.ema_decay is None else MeanOfWeights(model, cfg.ema_decay)
        if cfg.compile:
            compile_layers(model)
        checkpoint_activations(model, dict.fromkeys(PARTS, cfg.activation_checkpointing))
        for module in (model, self.mean and self.mean.module):
            if module is not None:
                shard(module, world, self.compute)
        return model.train()

    @property
    def saved(self) -> nn.Module:
        """The model, and the mean of its weights if there is one."""
        return self.model if self.mean is None else self.mean.with_model(self.model)

    @property
    def best(self) -> nn.Module:
        """What is validated and written: the mean of the weights, or the weights."""
        return self.model if self.mean is None else self.mean.module

    def build_mixes(self) -> list[Any]:
        """MixUp, CutMix or others, for this number of classes."""
        return [instantiate(node, num_classes=len(self.classes)) for node in self.cfg.mixes]

    def build_loader(
        self, images: LabelledImages, transforms: Any, shuffle: bool = False, mixes: list[Any] | None = None
    ) -> Loader:
        """Batches of this rank's share of the images; the same number on every rank."""
        cfg, world, encoder = self.cfg, self.world, self.blank
        patch = encoder.patch_embed.patch
        steps = Compose([instantiate(node) for node in transforms] or [nn.Identity()])
        data = Augmented(images, steps, seed=cfg.seed, multiple=patch * encoder.merge)
        order = {"seed": cfg.seed, "shuffle": shuffle, "rank": world.rank, "world_size": world.size}
        return build_loader(
            data,
            batch_size=cfg.batch_size,
            sampler=EpochSampler(len(data), **order),
            collate=ImageCollate(
                patch_size=patch,
                merge_size=encoder.merge,
                mixes=mixes or (),
                mix_share=cfg.mix_share,
                seed=cfg.seed,
            ),
            on_bad_sample=cfg.on_bad_sample,
            num_workers=cfg.num_workers,
            pin_memory=world.device.type == "cuda",
            filler={"pixels": data.example()["pixels"]},
        )

    def work_of(self, batch: Batch) -> Work:
        """Images and patches of a batch."""
        patches = len(batch.inputs["pixel_values"]) if batch.samples else 0
        counts = {"labelled": batch.samples, "samples": batch.samples, "images": batch.samples}
        return Work(tokens=patches, skipped=len(batch.skipped), **counts)

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the cross-entropies of a batch's images; a filler has none."""
        inputs = on_device(batch.inputs, self.world.device)
        with self.autocast():
            logits = self.model(inputs["pixel_values"], inputs["grid_thw"])
        smoothing = {"label_smoothing": self.cfg.label_smoothing, "reduction": "sum"}
        return F.cross_entropy(logits.float(), inputs["targets"], **smoothing), {}

    def step(self, batches: list[Batch]) -> Step:
        """A step of the loop; the mean of the weights follows it."""
        result = super().step(batches)
        if self.mean is not None and result.taken:
            self.mean.update(self.model)
        return result

    def train_epoch(self, epoch: int) -> None:
        """An epoch of the loop, and its mean loss."""
        super().train_epoch(epoch)
        if self.logger is not None:
            start = self.progress.epoch_start
            losses = [loss for step, loss in read_curves(self.output_dir).get("loss", ()) if step > start]
            if losses:
                self.bar.write(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.4f}")

    def log_step(self, step: Step, rates: dict[str, float]) -> None:
        """The loop's figures; of many layers' rates the first and the last."""
        ends = list(rates)[:1] + list(rates)[-1:]
        super().log_step(step, {part: rates[part] for part in ends})

    def validate(self) -> None:
        """Loss, top-1 and top-5 on the validation set."""
        if self.val_loader is not None:
            self.result = self.classify()
            self.log_validation(self.result.figures)

    def classify(self) -> Classified:
        """What the model to be saved makes of the validation set."""
        assert self.val_loader is not None
        self.val_loader.set_epoch(0)
        batches = (on_device(batch.inputs, self.world.device) for batch in self.val_loader)
        return classify(self.best, batches, self.world, self.autocast, len(self.classes))

    def finish(self) -> None:
        """Write encoder, head and pictures, then call the components of `finish:`."""
        cfg, out = self.cfg, self.output_dir
        if self.val_loader is not None and self.result is None:
            self.result = self.classify()
        state = {name: whole(p.detach()).cpu() for name, p in self.best.named_parameters()}
        self.blank.load_state_dict(state, strict=False, assign=True)
        if self.world.is_main:
            save_classifier(self.blank, out, self.classes, cfg.val_transforms, source=cfg.checkpoint_dir)
            if self.result is not None:
                summary = {
                    **self.result.figures,
                    "per_class": dict(zip(self.classes, self.result.per_class(), strict=True)),
                }
                (out / "results.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
                show_classes(self.result, self.val_images, out, cfg.shown_predictions)
            draw_curves(
                read_curves(out), out / "curves.png", titles={"Loss per answer token": "Loss per image"}
            )
        for component in cfg.finish:
            instantiate(component, self.model, out)
        named = {
            "model": "model",
            "curves": "curves.png",
            "results": "results.json",
            "pictures": "predictions.png",
        }
        self.say_end({name: out / file for name, file in named.items()})
        if self.logger is not None:
            self.logger.close()
        leave_world()


@record  # so that torchrun's last lines say what went wrong
def main(argv: list[str] | None = None) -> None:
    """Run with the command line `--config NAME [key=value ...]`."""
    run_recipe(TrainViTRecipe, argv, "train_vit")


if __name__ == "__main__":
    sys.exit(main())
