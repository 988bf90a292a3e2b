"""Seconds of an update on many ranks: what is shared out, what every rank does, what they send each other.

All-reduce over a ring (Patarasu and Yuan, 2009): each rank sends and receives 2 (N - 1)/N times the bytes. The latency
term grows with log2 N, as in NCCL's trees. Gradients travel during the backward pass, two thirds of the compute; word
rows and counts don't.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OPTIMIZER_BYTES = 28
"""AdamW reads weight, gradient and two moments of a parameter and writes three of them, in float32."""
BACKWARD = 2 / 3
"""Share of the backward pass in a step's FLOP, during which gradients can travel."""


@dataclass(frozen=True)
class Encoder:
    """Sizes of a model: weights of the encoder (layers and positions), and of the word table."""

    name: str
    weights: float
    vocabulary: int
    width: int


@dataclass(frozen=True)
class Machine:
    """What a rank has.

    Attributes:
        flops: FLOP/s that a training step reaches, not the peak.
        memory: bytes/s of a copy, reads and writes counted.
        near, far: bytes/s that a rank sends to others of its node, and of other nodes.
        node: ranks of a node.
        latency: seconds of a hop.
        overhead: seconds of an update that no more ranks shorten: launches, Python.
    """

    name: str
    flops: float
    memory: float
    near: float
    far: float
    node: int
    latency: float
    overhead: float


@dataclass(frozen=True)
class Update:
    """Where the seconds of an update go; ``gradients`` is what the backward pass doesn't hide."""

    compute: float
    overhead: float
    optimizer: float
    gradients: float
    rows: float
    latency: float

    @property
    def seconds(self) -> float:
        return self.compute + self.overhead + self.optimizer + self.gradients + self.rows + self.latency

    @property
    def largest_cost(self) -> str:
        """What takes most besides computing."""
        parts = {name: value for name, value in vars(self).items() if name != "compute"}
        return max(parts, key=lambda name: parts[name])


def all_reduce(size: float, ranks: int, machine: Machine) -> float:
    """Seconds to move ``size`` bytes through a ring, without latency."""
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks * size / (machine.near if ranks <= machine.node else machine.far)


def update(
    encoder: Encoder, machine: Machine, ranks: int, tokens: float, rows: float, active: float, bytes_each: int = 4
) -> Update:
    """An update of a *global* batch.

    Args:
        tokens: of the batch, all ranks together.
        rows: word rows that the batch touches. active: rows that the whole run touches.
        bytes_each: of a number that is sent: 4, or 2 with ``distributed.compress=bf16``.
    """
    compute = 6 * encoder.weights * tokens / ranks / machine.flops
    hidden = BACKWARD * compute
    calls = 4 if ranks > 1 else 0  # counts, rows touched, their sum, the last bucket
    return Update(
        compute=compute,
        overhead=machine.overhead,
        optimizer=OPTIMIZER_BYTES * (encoder.weights + active * encoder.width) / machine.memory,
        gradients=max(0.0, all_reduce(bytes_each * encoder.weights, ranks, machine) - hidden),
        rows=all_reduce(active + bytes_each * rows * encoder.width, ranks, machine),
        latency=calls * 2 * math.log2(ranks) * machine.latency if ranks > 1 else 0.0,
    )


@dataclass(frozen=True)
class Line:
    """y = start + slope x."""

    start: float
    slope: float

    def __call__(self, x: float) -> float:
        return self.start + self.slope * x


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares of relative errors, so that short times count as much as long ones; no negative start."""
    weight = 1 / np.asarray(y, dtype=float)
    columns = np.stack([weight, np.asarray(x, dtype=float) * weight], 1)
    (start, slope), *_ = np.linalg.lstsq(columns, np.ones(len(weight)), rcond=None)
    if start < 0:
        (slope,), *_ = np.linalg.lstsq(columns[:, 1:], np.ones(len(weight)), rcond=None)
        start = 0.0
    return Line(float(start), float(slope))


@dataclass(frozen=True)
class Heaps:
    """Distinct word rows of a batch of so many tokens: k tokens**beta (Heaps, 1978)."""

    k: float
    beta: float

    def __call__(self, tokens: float) -> float:
        return float(self.k * tokens**self.beta)


def fit_heaps(tokens: Sequence[float], distinct: Sequence[float]) -> Heaps:
    """A straight line in logarithms."""
    beta, log_k = np.polyfit(np.log(tokens), np.log(distinct), 1)
    return Heaps(float(np.exp(log_k)), float(beta))
