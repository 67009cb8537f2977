"""The recipe as users run it, with a model of random weights instead of a checkpoint's."""

from collections.abc import Callable
from typing import Any

import torch

from on_gpu.data import MAX_PIXELS, TINY_MAX_PIXELS, write_conversations, write_folder
from on_gpu.models import Model, build, fill
from on_gpu.setting import Setting
from torchtune_qwenvl.modules.float8 import SMALLEST, use_float8
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.recipes.finetune import FinetuneRecipe
from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.training.step.checkpointing import checkpoint_activations
from torchtune_qwenvl.training.step.layers import compile_layers, offload_activations, should_compile
from torchtune_qwenvl.training.step.precision import set_parameter_dtypes

PACK_TO, TINY_PACK_TO = 8192, 512


class Measured(FinetuneRecipe):
    """The recipe of a model of the benchmark.

    Args:
        model: what trains.
        setting: where.
        overrides: of its config, besides the model's own.
        sharding: called with the model on the meta device, where the recipe shards it.
    """

    def __init__(
        self,
        model: Model,
        setting: Setting,
        overrides: tuple[str, ...] = (),
        sharding: Callable[[Any], None] = lambda model: None,
    ) -> None:
        self.measured, self.setting, self.sharding = model, setting, sharding
        folder = write_folder(setting, 16 if "qwen3" in model.config else 14)
        words = [
            f"checkpoint_dir={folder}",
            f"output_dir={setting.folder / 'out'}",
            f"dataset.source={write_conversations(setting)}",
            f"device={setting.device.type}",
            f"pack_to={setting.size(PACK_TO, TINY_PACK_TO)}",
            f"tokenizer.max_seq_len={setting.size(4096, 400)}",
            f"tokenizer.max_pixels={setting.size(MAX_PIXELS, TINY_MAX_PIXELS)}",
            f"num_workers={setting.size(8, 0)}",
            f"optimizer.fused={str(setting.device.type == 'cuda').lower()}",
            *("dry_run=true", "epochs=100", "keep_lengths=false", "lr_scheduler=null"),
        ]
        super().__init__(resolve(model.config, [*words, *model.overrides, *overrides]))
        self.setup()

    def build_model(self) -> VisionLanguageModel:
        """As the recipe's, with random weights."""
        cfg = self.cfg
        model = build(cfg, self.measured, self.setting)
        model.image_token_id = self.transform.special_tokens["<|image_pad|>"]
        model.video_token_id = self.transform.special_tokens["<|video_pad|>"]
        set_parameter_dtypes(model, self.compute)
        if cfg.float8 is not None:
            use_float8(model.decoder, cfg.float8, self.world.device, self.setting.size(SMALLEST, 16))
        if should_compile(cfg.compile, self.world.device, model):
            compile_layers(model)
        checkpoint_activations(model, cfg.activation_checkpointing)
        self.sharding(model)
        fill(model, self.world.device)
        self.offloading = offload_activations(model, self.world.device, cfg.activation_offloading)
        return model.train()

    def batches(self) -> Any:
        """This process's batches, over and over."""
        for epoch in range(self.cfg.epochs):
            self.loader.set_epoch(epoch)
            yield from self.loader


def free(recipe: Measured) -> None:
    """Give the memory of a recipe back before the next one is built, and what was compiled for it.

    torch compiles a function for a few kinds of modules only, then runs it uncompiled; all models here share
    the code of their layers.
    """
    torch._dynamo.reset()
    for name in ("model", "optimizer", "parts", "check_gradients", "answers", "loader"):
        setattr(recipe, name, None)
    if recipe.world.device.type == "cuda":
        torch.cuda.empty_cache()
