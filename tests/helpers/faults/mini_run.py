"""A run that takes a second: the real loop, order of samples, saves, log and export around a tiny model.

A run can be killed at any of its operations on files: `Faults` counts them and sends SIGKILL at the n-th.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from launch import FORKS, _become, free_port, take_place
from omegaconf import OmegaConf
from torch import Tensor, nn

from torchtune_qwenvl import durable
from torchtune_qwenvl.checkpoints.shards import Entry, Shard, write_shard
from torchtune_qwenvl.data.loader import Batch, build_loader
from torchtune_qwenvl.data.order.packed_sampler import tokens_as_work
from torchtune_qwenvl.data.samples import Samples
from torchtune_qwenvl.data.streams.mixed import MixedStream
from torchtune_qwenvl.distributed import join_world, shard, whole
from torchtune_qwenvl.settings.files import PACKAGED
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.ending import close, keeping_what_was_trained
from torchtune_qwenvl.training.epochs import Epochs
from torchtune_qwenvl.training.loop import TrainingLoop
from torchtune_qwenvl.training.order import Order, order_of
from torchtune_qwenvl.training.resume import digests
from torchtune_qwenvl.training.step.optim import build_optimizer, build_scheduler
from torchtune_qwenvl.training.step.parts import GradientCheck
from torchtune_qwenvl.training.watch.history import FILE, History
from torchtune_qwenvl.training.watch.metrics import Meter, Work
from torchtune_qwenvl.transforms.size import SampleSize

WORDS, WIDTH = 40, 8
COSINE = (
    "lr_scheduler._component_=torchtune.training.get_cosine_schedule_with_warmup",
    "lr_scheduler.num_warmup_steps=2",
)
# name -> (processes, overrides): all ways in which samples become batches.
VARIANTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "full": (1, ("save_every_n_steps=1", "epochs=2", "max_steps_per_epoch=4", *COSINE)),
    "accumulated": (
        1,
        (
            "save_every_n_steps=2",
            "gradient_accumulation_steps=2",
            "batch_size=2",
            "num_workers=1",
            "epochs=2",
        ),
    ),
    "last one": (1, ("save_every_n_steps=3", "keep_last_n=1", "epochs=2", "clip_grad_norm=1.0", *COSINE)),
    "packed": (1, ("save_every_n_steps=1", "pack_to=30", "batch_size=1", "epochs=2", "keep_last_n=null")),
    "batch_tokens": (1, ("save_every_n_steps=1", "batch_tokens=40", "epochs=2", *COSINE)),
    "stream": (
        1,
        ("save_every_n_steps=2", "streams=true", "pack_to=30", "epochs=2", "max_steps_per_epoch=5"),
    ),
    "two ranks": (2, ("save_every_n_steps=2", "batch_size=3", "epochs=2", *COSINE)),
    "stream on two": (
        2,
        ("save_every_n_steps=2", "streams=true", "pack_to=30", "epochs=2", "max_steps_per_epoch=5"),
    ),
}


class Rows(Samples):
    """n samples of 1 to 13 tokens, each different."""

    def __init__(self, n: int, first: int = 0) -> None:
        self.n, self.first = n, first

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, key: int) -> dict[str, Any]:
        number = key + self.first
        return {"tokens": [(number * 7 + at * at) % WORDS for at in range(1 + number * 5 % 13)]}

    def where(self, key: int) -> str:
        return f"row {key}"

    def size(self, key: int) -> SampleSize:
        return SampleSize(len(self[key]["tokens"]), 0)


def collate(samples: Sequence[Any], padding_idx: int, ignore_idx: int) -> dict[str, Any]:
    """[tokens of all samples]."""
    return {"tokens": torch.tensor([token for sample in samples for token in sample["tokens"]])}


class MiniRun(TrainingLoop):
    """Predicts a token's successor; `argv` are overrides of base.yaml."""

    def __init__(self, output_dir: Path, *overrides: str) -> None:
        base = OmegaConf.load(PACKAGED / "base.yaml")
        own = {"output_dir": str(output_dir), "batch_size": 4, "num_workers": 0, "streams": False}
        self.cfg = OmegaConf.merge(base, own, OmegaConf.from_dotlist(list(overrides)))
        self.output_dir = output_dir

    def setup(self) -> None:
        """As the recipes do it."""
        cfg = self.cfg
        self.world = world = join_world("cpu")
        torch.manual_seed(cfg.seed)
        self.identity = resume.Identity.of(cfg)
        self.lock, saved = resume.begin(cfg, world, self.identity)
        self.model = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, WORDS))
        shard(self.model, world, torch.float32)
        parts = {"decoder": dict(self.model.named_parameters())}
        self.optimizer = build_optimizer(cfg.optimizer, parts, {"decoder": cfg.optimizer.lr})
        order = Order(cfg.seed, cfg.pack_to, cfg.batch_tokens, cfg.shuffle_buffer, 0)
        data: Any = Rows(27)
        if cfg.streams:
            data = MixedStream([Rows(40), Rows(30, 100)], [0.5, 0.5], ["a", "b"], "all_exhausted")
        source, sampler = order_of(data, order, world, tokens_as_work, cfg.shuffle)
        self.loader = build_loader(
            source, batch_size=cfg.batch_size, sampler=sampler, collate=collate, num_workers=cfg.num_workers
        )
        self.progress = saved.progress() if saved else resume.Progress()
        self.epochs = Epochs(
            self.loader,
            world,
            epochs=cfg.epochs,
            batches_per_step=cfg.gradient_accumulation_steps,
            max_steps=cfg.max_steps_per_epoch,
        )
        self.epochs.go_on(self.progress)
        steps = self.epochs.schedule_steps(self.progress)
        self.scheduler = build_scheduler(cfg.lr_scheduler, self.optimizer, steps)
        torch.manual_seed(cfg.seed + world.rank)
        if saved is not None:
            saved.restore(self.model, self.optimizer, self.scheduler, self.progress)
        self.check_gradients = GradientCheck({})
        self.meter = Meter(world, None)
        if world.is_main:
            folder = saved and saved.folder
            self.logger = History(Quiet(), self.output_dir, self.progress.step, folder)

    def work_of(self, batch: Batch) -> Work:
        return Work(labelled=max(batch.tokens - 1, 0), tokens=batch.tokens)

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch.inputs["tokens"]
        logits = self.model(tokens[:-1]) if len(tokens) > 1 else self.model(tokens)
        targets = tokens[1:] if len(tokens) > 1 else tokens
        return F.cross_entropy(logits, targets, reduction="sum"), {}

    def validate(self) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Write model/, as an export does."""
        with keeping_what_was_trained(self, "resume=true"):
            state = {name: whole(p.detach()) for name, p in self.model.named_parameters()}
            with self.world.together():
                if self.world.is_main:
                    write_model(self.output_dir / "model", state)
        close(self)


class Quiet:
    """A metric logger that does nothing."""

    def log_dict(self, payload: Any, step: int) -> None: ...

    def close(self) -> None: ...


def write_model(folder: Path, state: dict[str, Tensor]) -> None:
    """Weights and a file next to them."""
    entries = {name: Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    with durable.replaced_folder(folder) as work:
        (work / "config.json").write_text("{}")
        write_shard(work / "model.safetensors", Shard("model.safetensors", entries, {}), state.values())


class Faults:
    """Counts operations on files below a folder, and ends the process at one of them.

    Args:
        folder: of the run.
        at: number of the operation, from 1; 0 only counts.
    """

    def __init__(self, folder: Path, at: int = 0) -> None:
        self.folder, self.at = str(folder), at
        self.seen: list[str] = []
        fsync, write = os.fsync, digests.DigestFile.write

        def synced(handle: int) -> None:
            self.hit("fsync")
            fsync(handle)

        def written(file: Any, data: Any) -> int:
            self.hit(
                "write", lambda: file._file.write(memoryview(data).cast("B")[: len(memoryview(data)) // 2])
            )
            return write(file, data)

        os.fsync = synced
        digests.DigestFile.write = written  # type: ignore[method-assign]
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple) -> None:
        """Called by Python before each operation."""
        if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            path = os.fspath(args[0])
            if path.startswith(self.folder) or not path.startswith("/"):
                self.hit(event)
        elif event == "open" and set(args[1] or "") & set("wa+") and str(args[0]).startswith(self.folder):
            self.hit(event)

    def hit(self, what: str, last: Any = None) -> None:
        """One more operation; `last` is what of it still happens."""
        self.seen.append(what)
        if len(self.seen) == self.at:
            if last is not None:
                last()
            os.kill(os.getpid(), signal.SIGKILL)


def _process(
    rank: int, size: int, port: int, out: Path, overrides: Sequence[str], victim: int, at: int, delay: float
) -> None:
    _become(str(out.parent / f"{out.name}_{rank}.txt"))
    if size > 1:
        take_place(rank, size, port)
    if delay:
        _slow_down(delay)
    faults = Faults(out, at if rank == victim else 0)
    run = MiniRun(out, *overrides)
    run.setup()
    run.train()
    run.finish()
    (out.parent / f"{out.name}_{rank}.seen").write_text(" ".join(faults.seen))


def _slow_down(seconds: float) -> None:
    import time

    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(seconds)
        fsync(handle)

    os.fsync = slow


def start(
    out: Path, overrides: Sequence[str], size: int = 1, victim: int = 0, at: int = 0, delay: float = 0.0
) -> list[Any]:
    """The processes of a run, started; rank `victim` dies at operation `at`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    port = free_port() if size > 1 else 0
    ranks = [
        FORKS.Process(target=_process, args=(rank, size, port, out, overrides, victim, at, delay))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    return ranks


def finished(ranks: list[Any], timeout: float = 120) -> list[int | None]:
    """Exit codes; a process that hangs is killed, and has the code None."""
    codes = []
    for process in ranks:
        process.join(timeout)
        codes.append(process.exitcode)
        process.kill()
    return codes


def run(out: Path, overrides: Sequence[str], size: int = 1, **options: Any) -> list[int | None]:
    """Run to the end; exit codes of the ranks."""
    return finished(start(out, overrides, size, **options))


def operations(out: Path, rank: int = 0) -> list[str]:
    """What each operation on files was, in a run that has ended; the n-th is operation n + 1."""
    return (out.parent / f"{out.name}_{rank}.seen").read_text().split()


def printed(out: Path) -> str:
    """What all ranks have printed."""
    return "".join(path.read_text() for path in sorted(out.parent.glob(f"{out.name}_*.txt")))


def result(out: Path) -> dict[str, Any]:
    """Losses by step, and the bytes of model/."""
    lines = [json.loads(line) for line in (out / FILE).read_text().splitlines()]
    losses = {line["step"]: (line["loss"], line["grad_norm"], line["lr_decoder"]) for line in lines}
    model = {path.name: path.read_bytes() for path in (out / "model").iterdir()}
    return {"losses": losses, "model": model}
