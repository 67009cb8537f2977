"""Figures of the log line, by hand."""

import time

import pytest
import torch

from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.watch.metrics import PEAK_TFLOPS, Meter, Work, peak_flops, peak_memory_gib

WORLD = World(torch.device("cpu"))


def test_figures() -> None:
    meter = Meter(WORLD, peak=2e6)
    first = [Work(labelled=4, tokens=100, images=2, flops=3e5, skipped=1), Work(tokens=20, dropped_turns=2)]
    for batches in (first, [Work(tokens=80, flops=1e5)]):
        with meter.waiting():
            time.sleep(0.02)
        meter.add(Work.total(batches, WORLD))
    with meter.paused():
        time.sleep(0.3)
    figures = meter.report()
    seconds = 2 * figures["seconds_per_step"]
    assert 0.04 <= seconds < 0.3  # the pause does not count
    assert figures["tokens_per_second"] == pytest.approx(200 / seconds)
    assert figures["images_per_second"] == pytest.approx(2 / seconds)
    assert 0.02 <= figures["data_wait_seconds"] <= figures["seconds_per_step"]
    assert figures["mfu"] == pytest.approx(4e5 / seconds / 2e6)
    assert figures["tflops_per_device"] == pytest.approx(4e5 / seconds / 1e12)
    assert (figures["skipped_samples"], figures["dropped_turns"]) == (1, 2)
    meter.add(Work.total([Work(tokens=1, skipped=1)], WORLD))
    again = meter.report()
    assert again["skipped_samples"] == 2 and again["data_wait_seconds"] == 0


def test_no_peak_no_mfu() -> None:
    assert peak_flops(WORLD.device) is None
    assert peak_flops(WORLD.device, 312) == 312e12
    meter = Meter(WORLD, peak=None)
    meter.add(Work.total([Work(tokens=1)], WORLD))
    assert "mfu" not in meter.report()


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Some other card", None),
    ],
)
def test_devices_by_name(monkeypatch: pytest.MonkeyPatch, name: str, tflops: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = peak_flops(torch.device("cuda"))
    assert found == (None if tflops is None else pytest.approx(tflops * 1e12))
    assert all(value > 0 for value in PEAK_TFLOPS.values())


def test_memory_is_this_process() -> None:
    before = peak_memory_gib(WORLD.device)
    held = torch.ones(2**28 // 4)
    assert before > 0 and peak_memory_gib(WORLD.device) >= 0.25 and len(held)
