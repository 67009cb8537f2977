"""Fine-tune a vision-language model, fully or with LoRA, on one process or many.

    tune run torchtune_qwenvl/recipes/finetune.py --config qwen2_5_vl/3B_lora dataset.source=data.json
    tune run --nproc_per_node 8 torchtune_qwenvl/recipes/finetune.py --config qwen2_5_vl/7B_full ...

The loss is the mean over all labelled tokens of an optimizer step, on all ranks and in all its batches. They
are counted before the first forward pass, so neither accumulation nor the number of ranks changes what is
learnt. With several processes, FSDP2 shards model, gradients and optimizer; with one, nothing is sharded. The
loop over steps is in training/loop.py, the keys of a config are in configs/base.yaml.
"""

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import Dataset
from torchtune.config import instantiate
from torchtune.config._utils import _get_component_from_path
from torchtune.utils import get_logger

from torchtune_qwenvl.checkpoints.embedding_rows import check_transform
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.start import load_into
from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.loader import Batch, Loader, build_loader
from torchtune_qwenvl.data.workers import begin_sharing
from torchtune_qwenvl.distributed import leave_world, shard
from torchtune_qwenvl.exporting.export import check_export, export
from torchtune_qwenvl.modules.batch import on_device
from torchtune_qwenvl.modules.float8 import use_float8
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.pictures.curves import draw_curves
from torchtune_qwenvl.settings.config import check_start
from torchtune_qwenvl.settings.notes import notes
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.beginning import begin_from
from torchtune_qwenvl.training.dry_run import Forecast, Schedule, forecast
from torchtune_qwenvl.training.ending import close, keeping_what_was_trained
from torchtune_qwenvl.training.features.cache import FeatureCache
from torchtune_qwenvl.training.order import Order, check_has_length, member_names, order_of
from torchtune_qwenvl.training.recipe import Recipe
from torchtune_qwenvl.training.start import run_recipe
from torchtune_qwenvl.training.step.batches import collate_for, work_of
from torchtune_qwenvl.training.step.checkpointing import checkpoint_activations
from torchtune_qwenvl.training.step.layers import compile_layers, offload_activations, should_compile
from torchtune_qwenvl.training.step.memory_trial import memory_trial
from torchtune_qwenvl.training.step.nonfinite import check_finite
from torchtune_qwenvl.training.step.optim import (
    build_optimizer,
    build_optimizer_in_bwd,
    learning_rates,
)
from torchtune_qwenvl.training.step.parts import GradientCheck, trainable_by_part, trainable_table
from torchtune_qwenvl.training.step.precision import set_parameter_dtypes
from torchtune_qwenvl.training.watch.answer_display import show_answers
from torchtune_qwenvl.training.watch.flops import FlopCounter
from torchtune_qwenvl.training.watch.history import read_curves
from torchtune_qwenvl.training.watch.metrics import Meter, Work, peak_flops
from torchtune_qwenvl.training.watch.sample_log import log_samples
from torchtune_qwenvl.training.watch.validation_answers import ValidationAnswers
from torchtune_qwenvl.training.watch.validation_loss import validation_loss

log = get_logger("INFO")


class FinetuneRecipe(Recipe):
    """Set up, train, finish; see `main`. To change what a step does, subclass it or copy this file."""

    def __init__(self, cfg: DictConfig) -> None:
        check_start(cfg)
        self.start = begin_from(cfg)
        super().__init__(cfg)

    def setup(self) -> None:
        """Build everything that a step needs; each line needs only what is above it."""
        cfg, world = self.cfg, self.world
        self.prepare()
        begin_sharing(cfg.num_workers)
        # Before the weights are read, so that what cannot be written or resumed is reported at once.
        saved = None if cfg.dry_run else self.take_output_dir()
        self.transform = instantiate(cfg.tokenizer)
        self.features = FeatureCache(cfg, self.transform, self.world, self.autocast)
        dataset = instantiate(cfg.dataset, self.features.transform)
        val_dataset = instantiate(cfg.val_dataset, self.features.transform)
        check_has_length("val_dataset", val_dataset)
        self.model = self.build_model()
        check_transform(self.transform, self.model)
        if not cfg.dry_run:
            check_export(self.model, world, *self.exported)
        self.parts = trainable_by_part(self.model)
        rates = learning_rates(cfg, self.parts)
        build = build_optimizer_in_bwd if cfg.optimizer_in_bwd else build_optimizer
        self.optimizer = build(cfg.optimizer, self.parts, rates)
        self.flops = FlopCounter(self.model)
        self.loader = self.build_loader(dataset, cfg.shuffle)
        self.val_loader = self.build_loader(val_dataset, shuffle=False) if val_dataset else None
        ask = (cfg.val_answers, cfg.val_answer_tokens, cfg.on_bad_sample, cfg.on_too_long)
        self.answers = ValidationAnswers(val_dataset, self.transform, self.model, *ask)
        self.begin(saved)
        self.check_gradients = GradientCheck(self.parts)
        self.members = member_names(dataset)
        self.meter = Meter(world, peak_flops(world.device, cfg.device_peak_tflops), self.members)
        with world.together():
            if world.is_main:
                self.announce(saved, rates, dataset)
        self.features.open(self.model, dataset)

    def announce(self, saved: resume.Saved | None, rates: dict[str, float], dataset: Dataset) -> None:
        """Open the logs, and print what trains, for how many steps and from where."""
        cfg = self.cfg
        found = self.loader.notes_at_start()
        if self.val_loader is not None:
            found += [f"val_dataset: {line}" for line in self.val_loader.notes_at_start()]
        found += notes(cfg, self.total_steps)
        if not cfg.dry_run:
            self.open_logs(saved)
        if cfg.log_samples:
            log_samples(dataset, self.transform, cfg.on_bad_sample, cfg.on_too_long)
        start = str(saved) if saved else "from the checkpoint"
        if cfg.pack_to is not None or cfg.batch_tokens is not None:
            start = f"{self.loader.sampler}; {start}"
        table = trainable_table(self.model, rates)
        log.info("\n".join([table, f"{counted(self.total_steps, 'step')}, {start}", *found]))

    def build_model(self) -> VisionLanguageModel:
        """Build the model on meta, shard it, then load it: each rank reads only the weights that it keeps."""
        cfg = self.cfg
        with CheckpointFolder(cfg.checkpoint_dir) as files:
            with torch.device("meta"):
                model = instantiate(cfg.model, **files.model_arguments())
            set_parameter_dtypes(model, self.compute, masters=not cfg.optimizer.get("bf16_stochastic_round"))
            if cfg.float8 is not None:
                use_float8(model.decoder, cfg.float8, self.world.device)
            if should_compile(cfg.compile, self.world.device, model):
                compile_layers(model)
            checkpoint_activations(model, cfg.activation_checkpointing)
            shard(model, self.world, self.compute, self.features.whole(model))
            load_into(model, files, self.start, self.world.device)
        model.set_loss(instantiate(cfg.loss))
        self.offloading = offload_activations(model, self.world.device, cfg.activation_offloading)
        return model.train()

    def build_loader(self, dataset: Dataset, shuffle: bool) -> Loader:
        """Batches of this rank's share of a dataset; every rank gets the same number."""
        cfg = self.cfg
        order = Order(
            seed=cfg.seed,
            pack_to=cfg.pack_to,
            batch_tokens=cfg.batch_tokens,
            shuffle_buffer=cfg.shuffle_buffer,
            num_workers=cfg.num_workers,
            lengths_folder=self.output_dir / "lengths" if cfg.keep_lengths else None,
        )
        source, sampler = order_of(dataset, order, self.world, self.flops.of_sample, shuffle)
        return build_loader(
            source,
            batch_size=cfg.batch_size,
            sampler=sampler,
            collate=collate_for(
                self.model,
                padding_free=cfg.padding_free or cfg.pack_to is not None,
                own=_get_component_from_path(cfg.collate_fn),
            ),
            padding_idx=self.transform.pad_id,
            on_bad_sample=cfg.on_bad_sample,
            on_too_long=cfg.on_too_long,
            num_workers=cfg.num_workers,
            pin_memory=self.world.device.type == "cuda",
        )

    def dry_run(self) -> None:
        """Print memory and time of an epoch. It writes no model, but changes the weights in memory."""
        found = self.forecast()
        if self.world.is_main:
            log.info(found)
        leave_world()

    def forecast(self) -> Forecast:
        """Predict memory and time of an epoch from a few steps, which change the weights."""
        cfg = self.cfg
        run = Schedule(
            epochs=cfg.epochs,
            batches_per_step=cfg.gradient_accumulation_steps,
            max_steps=cfg.max_steps_per_epoch,
            num_workers=cfg.num_workers,
            padded=not cfg.padding_free and cfg.pack_to is None,
        )
        trial = memory_trial(self.model, self.world.device)
        return forecast(self.loader, self.step, self.flops, self.world, run, trial)

    def work_of(self, batch: Batch) -> Work:
        """Count a batch's work on the host."""
        return work_of(batch, self.transform.pad_id, self.flops, len(self.members))

    def loss_of(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of the losses of a batch's labelled tokens, and of further losses, which are logged apart.

        These are logged without their weights, and only if the model trains by them.
        """
        inputs = on_device(self.features.complete(batch.inputs), self.world.device)
        with self.autocast(), self.offloading:
            losses = self.model(**inputs, return_router_loss=True)
        further = {"router_aux_loss": losses.router_loss_sum, "mtp_loss": losses.mtp_loss_sum}
        return losses.loss_sum, {name: value for name, value in further.items() if value is not None}

    def validate(self) -> None:
        """Measure the loss on val_dataset, call the components of `evaluate:`, and generate a few answers."""
        figures: dict[str, float] = {}
        if self.val_loader is not None:
            self.val_loader.set_epoch(0)
            complete, device = self.features.complete, self.world.device
            batches = (on_device(complete(batch.inputs), device) for batch in self.val_loader)
            figures["val_loss"] = validation_loss(self.model, batches, self.world, self.autocast)
        for component in self.cfg.evaluate:
            with self.autocast():
                figures |= instantiate(component, self.model, self.transform)
        self.log_validation(figures)
        if self.answers.questions:
            with self.autocast():
                answers = self.answers(self.model)
            if self.logger is not None:
                self.bar.write(show_answers(answers, self.progress.step, self.output_dir, self.logger))

    @property
    def exported(self) -> tuple[str, Path, str | None, bool]:
        """Arguments of `export`: from where, to where and how."""
        cfg = self.cfg
        return cfg.checkpoint_dir, self.output_dir, cfg.export_dtype, cfg.merge_adapter

    def finish(self) -> None:
        """Write model/ and adapter/, draw the curves, then call the components of `finish:`."""
        cfg, out = self.cfg, self.output_dir
        self.features.close()
        with keeping_what_was_trained(self, "tune-qwenvl export"):
            check_finite(self.model, self.world, f"{out / 'model'}")
            files = export(self.model, self.world, *self.exported)
        if self.logger is not None:
            draw_curves(read_curves(out), out / "curves.png")
        for component in cfg.finish:
            instantiate(component, self.model, self.transform, out)
        answers = {"answers": out / "answers"} if self.answers.questions else {}
        self.say_end({**files, "curves": out / "curves.png", **answers})
        close(self)


@record  # so that torchrun prints the error last
def main(argv: list[str] | None = None, recipe: type[FinetuneRecipe] = FinetuneRecipe) -> None:
    """Run the recipe or a subclass of it with the command line `--config NAME [key=value ...]`."""
    run_recipe(recipe, argv, "finetune")


if __name__ == "__main__":
    sys.exit(main())
