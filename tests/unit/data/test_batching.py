"""Batches hold every example once, keep their bounds, and are a function of seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsalt.data.batching import PADDED, plan_batches
from xsalt.errors import UserError

LENGTHS = st.lists(st.integers(1, 60), min_size=0, max_size=300).map(np.array)


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS, size=st.one_of(st.none(), st.integers(1, 40)), tokens=st.integers(60, 400), shuffle=st.booleans()
)
def test_every_example_is_in_one_batch_within_the_bounds(
    lengths: np.ndarray, size: int | None, tokens: int, shuffle: bool
) -> None:
    for max_tokens in (tokens, None) if size else (tokens,):
        batches = plan_batches(lengths, size=size, max_tokens=max_tokens, seed=3, epoch=1, shuffle=shuffle)
        assert sorted(np.concatenate([*batches, []]).tolist()) == list(range(len(lengths)))
        for batch in batches:
            assert len(batch) >= 1
            assert size is None or len(batch) <= size
            if max_tokens is not None:
                assert lengths[batch].sum() <= max_tokens
                assert len(batch) * lengths[batch].max() <= max(PADDED * max_tokens, lengths[batch].max())


def lengths_of_nli(n: int = 20_000) -> np.ndarray:
    return np.random.default_rng(0).lognormal(3.6, 0.4, n).astype(int) + 8


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    lengths = lengths_of_nli(3000)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan_batches(lengths, size=16, seed=seed, epoch=epoch)]

    assert plan(1, 0) == plan(1, 0)
    assert plan(1, 0) != plan(1, 1)
    assert plan(1, 0) != plan(2, 0)


@pytest.mark.parametrize("bounds", [{"size": 32}, {"max_tokens": 1500}, {"size": 32, "max_tokens": 1500}])
def test_little_is_padding_and_the_batches_differ_between_epochs(bounds: dict[str, int]) -> None:
    lengths = lengths_of_nli()
    plans = [plan_batches(lengths, **bounds, seed=1, epoch=epoch) for epoch in (0, 1)]  # type: ignore[arg-type]
    for plan in plans:
        padded = sum(len(batch) * lengths[batch].max() for batch in plan)
        assert padded / lengths.sum() < 1.05
    same = {frozenset(batch.tolist()) for batch in plans[0]} & {frozenset(batch.tolist()) for batch in plans[1]}
    assert not same


def test_only_one_batch_is_short_and_few_are_needed() -> None:
    lengths = lengths_of_nli()
    sizes = sorted(len(batch) for batch in plan_batches(lengths, size=32, seed=1))
    assert sizes == [32] * 625
    assert sorted(len(batch) for batch in plan_batches(lengths[:10_001], size=32, seed=1))[1:] == [32] * 312
    budget = plan_batches(lengths, max_tokens=1500, seed=1)
    assert len(budget) < 1.08 * lengths.sum() / 1500


def test_batches_of_long_and_short_examples_are_not_in_order_of_length() -> None:
    lengths = lengths_of_nli()
    means = [lengths[batch].mean() for batch in plan_batches(lengths, size=32, seed=1)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_unshuffled_batches_ascend_in_length_whatever_the_seed() -> None:
    lengths = lengths_of_nli(500)
    plan = plan_batches(lengths, size=16, shuffle=False)
    assert np.all(np.diff(lengths[np.concatenate(plan)]) >= 0)
    again = plan_batches(lengths, size=16, seed=9, epoch=4, shuffle=False)
    assert all(np.array_equal(a, b) for a, b in zip(plan, again, strict=True))


def test_an_example_beyond_the_budget_is_a_users_error() -> None:
    with pytest.raises(UserError, match=r"batch\.max_tokens=50 is less than the longest example has: 51"):
        plan_batches(np.array([3, 51]), max_tokens=50)
    with pytest.raises(ValueError, match="one of size and max_tokens"):
        plan_batches(np.array([3]))
