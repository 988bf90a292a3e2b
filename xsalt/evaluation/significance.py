"""Whether one method beats another: comparisons in pairs, run by run with the same seeds.

The paper tests XNLI and PAWS-X by a t-test over random seeds with p <= 0.05 (arXiv 2309.10891). Runs with the same seed
see the same batches, so what a seed does to both cancels out of the difference: the t-test is the paired one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from xsalt.errors import UserError

WILCOXON_FROM = 6
"""Pairs from which Wilcoxon's test is made: with 5 its least two-sided p is 2 / 2**5 = 0.0625, never significant."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator; None for a single value) of n values."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """A method against its baseline, in pairs of runs with the same seed.

    Attributes:
        method, baseline: over the runs of each.
        gain: of the differences, method minus baseline.
        p: two-sided p of the paired t-test; None where all differences are equal, which leaves it undefined.
        low, high: 95 % confidence interval of the mean gain.
        wilcoxon_p: two-sided p of Wilcoxon's signed-rank test; None with fewer than 6 differences that aren't 0.
    """

    method: Spread
    baseline: Spread
    gain: Spread
    p: float | None
    low: float
    high: float
    wilcoxon_p: float | None


def spread(values: Sequence[float]) -> Spread:
    """Raises ``UserError`` without values, or if one is no finite number."""
    if not values:
        raise UserError("no values to average: there is no result yet")
    if not all(math.isfinite(value) for value in values):
        raise UserError(f"values to average must be finite numbers, not {list(values)}")
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), sd, len(values))


def compare(method: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison:
    """Paired comparison of two methods, both given as seed -> score.

    Raises:
        UserError: if the seeds differ or there are fewer than 2.
    """
    if method.keys() != baseline.keys():
        unpaired = ", ".join(map(str, sorted(method.keys() ^ baseline.keys())))
        raise UserError(f"only one of the two methods has seed {unpaired}: compare runs with the same seeds")
    if len(method) < 2:
        raise UserError(f"{len(method)} pair of runs: a test over seeds needs at least 2, better 5")
    seeds = sorted(method)
    differences = np.array([method[seed] - baseline[seed] for seed in seeds])
    gain = spread(differences.tolist())
    assert gain.sd is not None
    error = gain.sd / math.sqrt(gain.n)
    # Differences of accuracies are equal up to rounding where they are equal in fact.
    scale = max(abs(score) for scores in (method, baseline) for score in scores.values())
    constant = gain.sd <= 1e-12 * max(scale, 1e-300)
    p = None if constant else float(2 * stdtr(gain.n - 1, -abs(gain.mean) / error))
    margin = 0.0 if constant else float(stdtrit(gain.n - 1, (1 + CONFIDENCE) / 2)) * error
    return Comparison(
        spread([method[seed] for seed in seeds]),
        spread([baseline[seed] for seed in seeds]),
        gain,
        p,
        gain.mean - margin,
        gain.mean + margin,
        _wilcoxon(np.round(differences, 10)),  # so that equal differences tie
    )


def _wilcoxon(differences: npt.NDArray[np.float64]) -> float | None:
    if np.count_nonzero(differences) < WILCOXON_FROM:
        return None
    from scipy.stats import wilcoxon  # late: it takes a second to import

    return float(wilcoxon(differences[differences != 0]).pvalue)
