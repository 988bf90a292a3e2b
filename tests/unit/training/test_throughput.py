"""The figures of speed mean what their names say."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from xsalt.batch import Layout
from xsalt.training import throughput
from xsalt.training.throughput import Window, matrix_product_flops, peak_memory_gb

CPU = torch.device("cpu")


def test_the_ceiling_is_what_a_large_product_reaches() -> None:
    a = torch.randn(1024, 1024)
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    assert 0.3 < matrix_product_flops(CPU, "fp32") / best < 3.0  # a shared machine


def test_peak_memory_is_resident_memory() -> None:
    before = peak_memory_gb(CPU)
    assert 0.05 < before < 1000
    block = np.ones(40_000_000)  # 0.32 GB
    assert block.sum() == 40_000_000
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peak_memory_gb(CPU) == pytest.approx(peak * 1024 / 1e9, rel=0.02)


def test_a_window_counts_tokens_padding_waiting_and_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "matrix_product_flops", lambda device, precision: 1e6)
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput.time, "monotonic", lambda: clock.now)
    window = Window(lambda layout: 300.0 * layout.tokens, CPU, "fp32")
    batches: list[Any] = [SimpleNamespace(layout=Layout(np.array(lengths))) for lengths in ([4, 2], [5, 5])]
    window.add_update(batches, 4, waited=0.5)
    window.add_figures({"loss": (6.0, 4.0), "accuracy": (0.0, 0.0)})
    window.add_figures({"loss": (2.0, 4.0)})
    clock.now, window.paused = 104.0, 2.0
    values = window.values()
    assert values.pop("peak_memory_gb") > 0
    assert values == {
        "loss": 1.0,
        "padding": pytest.approx(2 / 18),
        "tokens_per_s": 8.0,
        "pairs_per_s": 2.0,
        "mfu": pytest.approx(8 * 300 / 1e6),
        "data_wait": 0.25,
    }
    window.restart()
    assert window.figures == {}
    assert window.paused == 0
