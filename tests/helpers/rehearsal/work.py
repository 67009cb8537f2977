"""Models of real widths with few layers, and the batches that collate makes for them."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rehearsal.machine import GPU, gpu_answers
from torchtune_qwenvl.estimating.workload import Sample
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4, quantised
from torchtune_qwenvl.modules.float8 import use_float8
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.step.checkpointing import checkpoint_activations
from torchtune_qwenvl.training.step.layers import compile_layers
from torchtune_qwenvl.training.step.precision import set_parameter_dtypes

BUILDERS = {
    "qwen2_vl": "qwen2_vl_7b",
    "qwen2_5_vl": "qwen2_5_vl_7b",
    "qwen3_vl": "qwen3_vl_8b",
    "qwen3_5": "qwen3_5_9b",
    "glm4v": "glm4_1v_9b",
    "qwen3_vl_moe": "qwen3_vl_30b_a3b",
    "qwen3_5_moe": "qwen3_5_35b_a3b",
    "glm4v_moe": "glm4_5v",
}
# Decoder layers that show all kinds; the last two of these are a delta net and attention.
LAYERS = dict.fromkeys(("qwen3_5", "qwen3_5_moe"), 2)
LORA = {
    "encoder_trainable": "frozen",
    "fusion_trainable": "frozen",
    "decoder_trainable": "lora",
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
    "lora_rank": 16,
    "lora_alpha": 32,
}
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "qlora": {**LORA, "quantize_base": True},
    "full_float8": {},
    "lora_float8": LORA,
}
STATISTICS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


@dataclass(frozen=True)
class Case:
    """What is rehearsed.

    Attributes:
        family: a key of `BUILDERS`.
        mode: a key of `MODES`.
        sharded: parameters are in the compute dtype where they are used, as under FSDP.
        builder: the size; None is the family's in `BUILDERS`.
        layers: how many of the decoder's layers are kept, and one more of the encoder's; None: all.
        checkpointing: whether layers are recomputed, by tower; None: as the configs do.
        compiled: whether layers are compiled.
    """

    family: str
    mode: str
    sharded: bool = False
    builder: str | None = None
    layers: int | None = 1
    checkpointing: dict[str, Any] | None = None
    compiled: bool = False

    def __str__(self) -> str:
        place = "sharded" if self.sharded else "one"
        return f"{self.family}:{self.mode}:{place}" + (f":{self.layers}" if self.layers != 1 else "")

    @classmethod
    def parse(cls, name: str) -> "Case":
        """The inverse of `str`."""
        family, mode, place, *layers = name.split(":")
        return cls(family, mode, place == "sharded", layers=int(layers[0]) if layers else 1)


DEFAULT = (
    *(Case(family, "lora", layers=LAYERS.get(family, 1)) for family in BUILDERS),
    *(Case(family, "full", sharded=True) for family in ("qwen2_5_vl", "qwen3_vl_moe")),
    Case("qwen2_5_vl", "qlora"),
    *(Case("qwen3_vl", mode) for mode in ("full_float8", "lora_float8")),
)
EVERY = tuple(
    Case(family, mode, sharded, layers=3)
    for family in BUILDERS
    for mode in MODES
    for sharded in (False, True)
    if "float8" not in mode and (mode != "qlora" or not (sharded or family.endswith("_moe")))
)


def build(case: Case) -> VisionLanguageModel:
    """The model of a case on the meta device, as the recipe builds it."""
    module = importlib.import_module(f"torchtune_qwenvl.models.{case.family}")
    with torch.device("meta"):
        model = getattr(module, case.builder or BUILDERS[case.family])(**MODES[case.mode], **STATISTICS)
    if case.layers is not None:
        cut(model, case.layers, case.layers + 1)
    set_parameter_dtypes(model, torch.bfloat16)
    if case.mode.endswith("float8"):
        with gpu_answers({}):
            use_float8(model.decoder, "tensorwise", GPU)
    if case.compiled:
        compile_layers(model)
    towers = {"encoder": case.mode.startswith("full"), "decoder": True}
    checkpoint_activations(model, towers if case.checkpointing is None else case.checkpointing)
    return model


def cut(model: VisionLanguageModel, decoder: int, encoder: int) -> None:
    """Keep so many layers of each tower: the last of the decoder, whose first may be without experts."""
    model.decoder.layers = model.decoder.layers[-decoder:]
    _cut_encoder(model.vision_encoder, encoder)


def _cut_encoder(encoder: Any, layers: int) -> None:
    """Keep the first layers. The last has a deepstack merger and full attention if the encoder has any."""
    encoder.layers = encoder.layers[:layers]
    encoder.depth = layers
    if encoder.deepstack_layers:
        encoder.deepstack_layers = {layers - 1: 0}
        encoder.deepstack_mergers = encoder.deepstack_mergers[:1]
    if encoder.full_attention:
        encoder.full_attention = frozenset({layers - 1})


def sample_of(model: VisionLanguageModel, made: Sample) -> dict[str, Any]:
    """A sample as the transform makes it, all pixels black."""
    embed, merge = model.vision_encoder.patch_embed, model.vision_encoder.merge
    visual = sum(t * h * w for t, h, w in made.grids) // merge**2
    stills = all(t == 1 for t, _, _ in made.grids)
    width = embed.still_width if stills else embed.in_features
    images = [torch.zeros(t * h * w, width, dtype=torch.uint8) for t, h, w in made.grids]
    positions = torch.arange(made.tokens)[:, None].expand(-1, 3)
    return {
        "tokens": [model.image_token_id] * visual + [1] * (made.tokens - visual),
        "mask": [True] * (made.tokens - made.labelled) + [False] * made.labelled,
        "input_pos": positions.contiguous(),
        "visual": list(range(visual)),
        "encoder_input": {"vision": {"images": images, "grid_thw": torch.tensor(made.grids).view(-1, 3)}},
    }


def to_gpu(model: VisionLanguageModel, device: torch.device) -> None:
    """Give a model on the meta device fake memory; quantised weights as they are quantised when read."""
    model.to_empty(device=device)
    for name, parameter in list(model.named_parameters()):
        if is_nf4(parameter):
            module, _, leaf = name.rpartition(".")
            weight = quantised(torch.empty(parameter.shape, dtype=parameter.dtype, device=device))
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(weight, requires_grad=False))


def as_sharded(model: VisionLanguageModel, whole: set[Tensor]) -> None:
    """Cast the parameters as FSDP does where a layer runs: all but those of `whole` to bf16."""
    for parameter in model.parameters():
        if parameter not in whole and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
