"""The model of an update on many ranks (``examples/scaling``) gives what can be worked out by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FILE = Path(__file__).resolve().parents[2] / "examples" / "scaling" / "model.py"


@pytest.fixture(scope="module")
def model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_model", FILE)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


def test_an_update_is_the_sum_of_what_each_part_takes_by_hand(model: ModuleType) -> None:
    encoder = model.Encoder("small", weights=1e6, vocabulary=1000, width=10)
    machine = model.Machine("slow", flops=6e9, memory=28e6, near=1e6, far=1e5, node=2, latency=0.5, overhead=2.0)
    alone = model.update(encoder, machine, 1, tokens=1000, rows=100, active=500)
    assert (alone.compute, alone.gradients, alone.rows, alone.latency) == (1.0, 0.0, 0.0, 0.0)
    assert alone.optimizer == pytest.approx((1e6 + 5000) / 1e6)
    assert alone.seconds == pytest.approx(1.0 + 2.0 + 1.005)
    two = model.update(encoder, machine, 2, tokens=1000, rows=100, active=500)
    assert two.compute == 0.5
    assert two.gradients == pytest.approx(4.0 - 0.5 * 2 / 3)  # 4 MB at 1 MB/s, less the backward pass
    assert two.rows == pytest.approx(4500 / 1e6)
    assert two.latency == pytest.approx(4 * 2 * 0.5)
    assert two.largest_cost == "latency"
    four = model.update(encoder, machine, 4, tokens=1000, rows=100, active=500, bytes_each=2)
    assert four.gradients == pytest.approx(2 * 0.75 * 2e6 / 1e5 - 0.25 * 2 / 3)  # between nodes
    assert four.largest_cost == "gradients"


def test_an_exchange_that_the_backward_pass_hides_costs_nothing(model: ModuleType) -> None:
    encoder = model.Encoder("small", weights=1e6, vocabulary=1000, width=10)
    machine = model.Machine("slow", flops=6e9, memory=28e6, near=1e9, far=1e9, node=2, latency=0.0, overhead=0.0)
    assert model.update(encoder, machine, 2, tokens=1000, rows=0, active=0).gradients == 0.0


def test_fits_find_the_line_and_the_power_that_made_the_points(model: ModuleType) -> None:
    x = np.array([1.0, 10.0, 1000.0])
    line = model.fit_line(x, 3 + 0.5 * x)
    assert (line.start, line.slope) == (pytest.approx(3), pytest.approx(0.5))
    assert model.fit_line([1.0, 2.0, 3.0], [1.0, 2.5, 4.0]).start == 0.0  # a straight fit would start below zero
    power = model.fit_heaps(x, 4 * x**0.7)
    assert (power.k, power.beta, power(100)) == (pytest.approx(4), pytest.approx(0.7), pytest.approx(4 * 100**0.7))
