"""Train a vision encoder to classify images: from scratch, or from the encoder of any checkpoint.

    tune run torchtune_qwenvl/recipes/train_vit.py --config vit/digits
    tune run --nproc_per_node 8 torchtune_qwenvl/recipes/train_vit.py --config vit/imagefolder \\
        checkpoint_dir=/tmp/Qwen2.5-VL-3B-Instruct dataset.source=photos/ train=last_n

What is unusual: images may differ in size, the patches of all images lie flat in one batch. The loss is the
mean over the images of the whole step, on all processes. Augmentation depends on nothing but the seed, the
epoch and the number of an image. The steps themselves are training/loop.py. Every key is in
configs/vit/base.yaml.
"""

import sys
from copy import deepcopy
from typing import Any

import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torchtune.config import instantiate
from torchtune.utils import get_logger
from torchvision.transforms.v2 import Compose

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.labelled import LabelledImages, build_image_loader, check_labelled, split_off
from torchtune_qwenvl.data.loader import Batch, Loader
from torchtune_qwenvl.distributed import shard, whole
from torchtune_qwenvl.exporting.classifier import save_classifier
from torchtune_qwenvl.modules.batch import on_device
from torchtune_qwenvl.modules.trainable import PARTS
from torchtune_qwenvl.pictures.curves import draw_curves
from torchtune_qwenvl.settings.config import check_start
from torchtune_qwenvl.settings.notes import notes
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.ending import close, keeping_what_was_trained
from torchtune_qwenvl.training.loop import Step
from torchtune_qwenvl.training.recipe import Recipe
from torchtune_qwenvl.training.start import run_recipe
from torchtune_qwenvl.training.step.checkpointing import checkpoint_activations
from torchtune_qwenvl.training.step.ema import MeanOfWeights
from torchtune_qwenvl.training.step.encoder_parts import (
    adapter_of,
    choose_trainable,
    parts_of,
    rates_of,
    undecayed,
)
from torchtune_qwenvl.training.step.layers import compile_layers
from torchtune_qwenvl.training.step.optim import build_optimizer
from torchtune_qwenvl.training.step.parts import GradientCheck
from torchtune_qwenvl.training.watch.classification import Classified, classify
from torchtune_qwenvl.training.watch.flops import EncoderFlops
from torchtune_qwenvl.training.watch.history import read_curves
from torchtune_qwenvl.training.watch.metrics import Meter, Work, peak_flops
from torchtune_qwenvl.training.watch.shown_classes import show_classes

log = get_logger("INFO")


class TrainViTRecipe(Recipe):
    """Set up, train, finish; see `main`. To change what a step does, subclass it or copy this file."""

    nothing_trained = "trained on no image at all: every image was skipped"

    def __init__(self, cfg: DictConfig) -> None:
        check_start(cfg)
        super().__init__(cfg)

    def setup(self) -> None:
        """Everything that a step needs, in the order in which one needs the other."""
        cfg, world = self.cfg, self.world
        self.prepare()
        # Before the weights: what cannot be written or resumed, and a wrong path, show at once.
        saved = self.take_output_dir()
        self.images, self.val_images = self.build_data()
        self.classes = self.images.class_names
        self.model = self.build_model()
        parts = parts_of(self.model, cfg.layer_decay)
        rates = rates_of(self.model, parts, cfg.optimizer.get("lr"), cfg.head_lr, cfg.layer_decay)
        self.optimizer = build_optimizer(cfg.optimizer, parts, rates, undecayed(self.model))
        self.loader = self.build_loader(self.images, cfg.train_transforms, cfg.shuffle, self.build_mixes())
        self.val_loader = self.build_loader(self.val_images, cfg.val_transforms) if self.val_images else None
        self.begin(saved)
        if self.mean is not None:
            self.mean.go_on_from(self.progress.step)
        self.flops = EncoderFlops(self.model)
        self.check_gradients = GradientCheck(parts)
        self.meter = Meter(world, peak_flops(world.device, cfg.device_peak_tflops))
        self.result: Classified | None = None
        if world.is_main:
            self.announce(saved)

    def announce(self, saved: resume.Saved | None) -> None:
        """Open the logs, and say what trains, for how long and from where."""
        self.open_logs(saved)
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        trains, total = sum(n for n, trained in counts if trained), sum(n for n, _ in counts)
        held_out = f"{len(self.val_images)} to validate on" if self.val_images else "none to validate on"
        start = str(saved) if saved else "from the start"
        images, steps = counted(len(self.images), "image"), counted(self.total_steps, "step")
        classes = counted(len(self.classes), "class", "classes")
        line = (
            f"{trains:,} of {total:,} parameters train; {images} of {classes}, {held_out}; {steps}, {start}"
        )
        log.info("\n".join([line, *notes(self.cfg, self.total_steps)]))

    def build_data(self) -> tuple[LabelledImages, LabelledImages | None]:
        """Images to train and to validate on, with the same classes."""
        cfg = self.cfg
        found = {key: instantiate(cfg[key]) for key in ("dataset", "val_dataset") if cfg[key] is not None}
        for key, images in found.items():
            check_labelled(key, images)
        images, val_images = found["dataset"], found.get("val_dataset")
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
        cfg, world = self.cfg, self.world
        return build_image_loader(
            images,
            Compose([instantiate(node) for node in transforms] or [nn.Identity()]),
            order={"seed": cfg.seed, "shuffle": shuffle, "rank": world.rank, "world_size": world.size},
            patches={"patch_size": self.blank.patch_embed.patch, "merge_size": self.blank.merge},
            mixing={"mixes": mixes or (), "mix_share": cfg.mix_share},
            batch_size=cfg.batch_size,
            on_bad_sample=cfg.on_bad_sample,
            num_workers=cfg.num_workers,
            pin_memory=world.device.type == "cuda",
        )

    def work_of(self, batch: Batch) -> Work:
        """Images, patches and operations of a batch."""
        samples, skipped = batch.samples, len(batch.skipped)
        if not samples:
            return Work(skipped=skipped)
        patches, grids = batch.inputs["pixel_values"], batch.inputs["grid_thw"]
        flops = self.flops(grids, patches.shape[1]) + self.flops.per_image * samples
        counts = {"labelled": samples, "samples": samples, "images": samples}
        return Work(tokens=len(patches), flops=flops, skipped=skipped, **counts)

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
        with keeping_what_was_trained(self, "resume=true"), self.world.together():
            if self.world.is_main:
                save_classifier(self.blank, out, self.classes, cfg.val_transforms, source=cfg.checkpoint_dir)
        if self.world.is_main:
            if self.result is not None:
                self.result.save(out / "results.json", self.classes)
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
        close(self)


@record  # so that torchrun's last lines say what went wrong
def main(argv: list[str] | None = None, recipe: type[TrainViTRecipe] = TrainViTRecipe) -> None:
    """Run the recipe or a subclass of it with the command line `--config NAME [key=value ...]`."""
    run_recipe(recipe, argv, "train_vit")


if __name__ == "__main__":
    sys.exit(main())
