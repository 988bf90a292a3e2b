"""The next batches are made in time, in order, and never when nobody waits for them any more."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from xsalt.training.prefetch import prefetched


def test_everything_comes_in_order_from_another_thread() -> None:
    threads = set()

    def make(item: int) -> int:
        threads.add(threading.get_ident())
        return item * item

    assert list(prefetched(make, range(20))) == [i * i for i in range(20)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert list(prefetched(make, [])) == []


def test_the_next_item_is_made_while_the_present_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(4)]

    def make(item: int) -> int:
        made[item].set()
        return item

    with closing(prefetched(make, range(4), ahead=2)) as items:
        assert next(items) == 0
        assert made[1].wait(timeout=10)  # though nobody asked for it yet
        assert made[2].wait(timeout=10)
        assert not made[3].is_set()


def test_a_failure_is_raised_when_its_turn_comes() -> None:
    def make(item: int) -> int:
        if item == 2:
            raise ValueError("broken")
        return item

    items = prefetched(make, range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_closing_ends_the_thread() -> None:
    items = prefetched(lambda item: item, range(1000))
    next(items)
    items.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("xsalt-prefetch")]
