"""Peak memory and time of a training step with and without each memory saver, for one model and batch.

    python benchmarks/savers.py [--threads 1] [--steps 3] [--row NAME ...]

The model has 57 M parameters in bf16 with fp32 masters. The batch has four conversations of 100 to 700
tokens, one of them with an image of 1,024 patches. Each row runs the recipe in a new process. The peak is the
memory that torch allocated (CUDA) or the resident memory (CPU). On the CPU it includes what importing the
recipe takes (the first row) and the compiler, offloading copies within the same memory, and torchao's
optimizer runs uncompiled.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from common import describe_machine, in_process
from workload import write_workload

TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 8,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    "vocab_size": 8192,
}
VISION = {
    "depth": 4,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_heads": 8,
    "out_hidden_size": 512,
    "fullatt_block_indexes": [1, 3],
}
CONVERSATIONS = ((448, 400), (0, 60), (0, 150), (0, 300))
RECOMPUTED = ("activation_checkpointing.encoder=true", "activation_checkpointing.decoder=true")
EIGHT_BIT = ("optimizer=torchao.optim.AdamW8bit", "optimizer.lr=1e-5")
LORA = (
    "model.encoder_trainable=frozen",
    "model.fusion_trainable=frozen",
    "model.decoder_trainable=lora",
    "model.lora_attn_modules=[q_proj,k_proj,v_proj,output_proj]",
    "model.apply_lora_to_mlp=true",
    "model.lora_rank=16",
    "model.lora_alpha=32",
)
QLORA = (*LORA, "model.quantize_base=true")
ROWS: dict[str, tuple[str, ...]] = {
    "full": (),
    "activation checkpointing": RECOMPUTED,
    "checkpointing + offloading": (*RECOMPUTED, "activation_offloading=true"),
    "checkpointing + optimizer in backward": (*RECOMPUTED, "optimizer_in_bwd=true"),
    "8-bit AdamW": EIGHT_BIT,
    "padding-free": ("padding_free=true",),
    "compile": ("compile=true",),
    "all but compile": (*RECOMPUTED, "optimizer_in_bwd=true", *EIGHT_BIT, "padding_free=true"),
    "LoRA": LORA,
    "DoRA": (*LORA, "model.use_dora=true"),
    "QLoRA": QLORA,
    "QLoRA + checkpointing": (*QLORA, *RECOMPUTED),
}


def measure(pipe, config: str, overrides: tuple[str, ...] | None, threads: int, steps: int) -> None:
    """Run the recipe and send (peak in MB, median seconds per step); None: only import it."""
    if overrides is not None and "compile=true" not in overrides:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # torchao would compile a kernel per shape
    import torch

    from torchtune_qwenvl.recipes.finetune import FinetuneRecipe
    from torchtune_qwenvl.settings.config import resolve
    from torchtune_qwenvl.training.watch.metrics import peak_memory_gib

    torch.set_num_threads(threads)
    seconds = [0.0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if overrides is not None:
        recipe = FinetuneRecipe(
            resolve(config, ["batch_size=4", "shuffle=false", "dry_run=true", *overrides])
        )
        recipe.setup()
        seconds = []
        for _ in range(1 + steps):
            start = time.perf_counter()
            loss, *_ = recipe.step([next(iter(recipe.loader))])
            loss.item()
            seconds.append(time.perf_counter() - start)
    pipe.send((1024 * peak_memory_gib(device), statistics.median(seconds[1:] or seconds)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--row", choices=ROWS, action="append", help="all when left out")
    arguments = parser.parse_args()
    print(describe_machine(arguments.threads))
    print("| saver | peak MB | above imports | seconds per step |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        config = write_workload(Path(temporary), CONVERSATIONS, TEXT, VISION)
        floor, _ = in_process(measure, str(config), None, arguments.threads, 0)
        print(f"| (imports) | {floor:.0f} | | |", flush=True)
        for name in arguments.row or ROWS:
            given = (str(config), ROWS[name], arguments.threads, arguments.steps)
            peak, seconds = in_process(measure, *given)
            print(f"| {name} | {peak:.0f} | {peak - floor:.0f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
