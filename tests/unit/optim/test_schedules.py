"""Schedules rise through the warm-up and end where they say."""

from __future__ import annotations

import pytest

from xsalt.optim.schedules import rate


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_warm_up_rises_linearly_to_the_full_rate(kind: str) -> None:
    rates = [rate(kind, update, 100, 0.1) for update in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert all(0 < r <= 1 for r in rates)


@pytest.mark.parametrize(("kind", "last"), [("linear", 1 / 90), ("cosine", 3.05e-4), ("constant", 1.0)])
def test_the_last_update_still_learns_a_little(kind: str, last: float) -> None:
    assert rate(kind, 99, 100, 0.1) == pytest.approx(last, rel=1e-2)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert rate("linear", 0, 10, 0.0) == 1.0
