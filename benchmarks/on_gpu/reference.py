"""The same conversations through transformers: one conversation after the other, without padding.

fp32 masters under autocast, layers recomputed and fused AdamW, as on our side. Attention is flash attention:
the package flash_attn if it is installed, otherwise torch's own, which takes flash without a mask.
"""

import gc
import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from on_gpu.models import MODELS
from on_gpu.recipe import Measured, free
from on_gpu.rows import MISS, Row
from on_gpu.setting import Measurement, Setting
from on_gpu.steps import TIMED, WARM, driven
from torchtune_qwenvl.data.loader import Batch

MODEL = MODELS[0]


def measurements(setting: Setting) -> Iterator[Measurement]:
    """Only one."""
    yield f"{MODEL.name}, beside transformers", partial(_beside, setting)


def _beside(setting: Setting) -> list[Row]:
    """Both sides with all layers recomputed, uncompiled, on the same packed batches."""
    setting.restart_peak()
    recipe = Measured(MODEL, setting, ("compile=false",))
    config = recipe.model.config
    batches = recipe.batches()
    kept = [next(batches) for _ in range(2)]
    batches.close()
    ours = driven(recipe, setting)
    ids, device = recipe.model.image_token_id, setting.device
    free(recipe)
    gc.collect()
    setting.restart_peak()
    model = _model(config, ids, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device.type == "cuda")
    made = [list(conversations(batch, ids, device)) for batch in kept]
    turn = iter(range(10_000))

    def step() -> None:
        _step(model, optimizer, made[next(turn) % len(made)])

    milliseconds = setting.milliseconds(step, repeats=TIMED)
    tokens = sum(batch.tokens for batch in kept) / len(kept)
    theirs = {"peak GB": setting.peak_gb()}
    if milliseconds:
        theirs |= {"tokens/s": 1e3 * tokens / milliseconds, "warm-up steps": float(WARM)}
        theirs["ours / theirs"] = ours["tokens/s"] / theirs["tokens/s"]
    rows = [
        Row("reference", f"{MODEL.name}, ours", figures=ours),
        Row("reference", f"{MODEL.name}, transformers", figures=theirs, note=_attention()),
    ]
    if theirs.get("ours / theirs", 2.0) < 1.0:
        rows[1].status, rows[1].note = MISS, "transformers is faster"
    return rows


def _attention() -> str:
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def _model(config: dict[str, Any], image_token: int, device: torch.device) -> Any:
    """The same architecture with random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    known = {key: config[key] for key in ("text_config", "vision_config", "tie_word_embeddings")}
    made = Qwen2_5_VLConfig(**known, image_token_id=image_token)
    made._attn_implementation = _attention() if device.type == "cuda" else "sdpa"
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(made)
    model.gradient_checkpointing_enable()
    return model.float().train()


def conversations(batch: Batch, image_token: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The conversations of a packed batch, as transformers takes them."""
    inputs = batch.inputs
    tokens, labels = inputs["tokens"].flatten(), inputs["labels"].flatten()
    vision = inputs["encoder_input"]["vision"]
    grids = vision["grid_thw"]
    pixels = vision["pixel_values"].split([int(g.prod()) for g in grids])
    at = start = 0
    for length in [int(n) for n in inputs["layout"]["document_lengths"]]:
        ids = tokens[start : start + length]
        one: dict[str, Tensor] = {
            "input_ids": ids[None],
            "labels": labels[None, start : start + length],
            "mm_token_type_ids": (ids == image_token).int()[None],
        }
        visual, ours = int((ids == image_token).sum()), []
        while sum(int(grids[i].prod()) // 4 for i in ours) < visual:
            ours.append(at)
            at += 1
        if ours:
            raw = torch.cat([pixels[i] for i in ours]).float().unflatten(-1, (3, 1, -1)) / 255 - 0.5
            one["pixel_values"] = (2 * raw).expand(-1, 3, 2, -1).flatten(1)  # mean and std are 0.5
            one["image_grid_thw"] = grids[ours]
        yield {name: tensor.to(device) for name, tensor in one.items()}
        start += length


def _step(model: Any, optimizer: torch.optim.Optimizer, made: list[dict[str, Tensor]]) -> None:
    """Forward and backward of every conversation, clipping and the optimizer."""
    kind = made[0]["input_ids"].device.type
    for one in made:
        with torch.autocast(kind, torch.bfloat16):
            loss = model(**one, use_cache=False).loss
        (loss / len(made)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
