"""Prepares the next items while the present one is computed with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetched(make: Callable[[Item], Made], items: Iterable[Item], ahead: int = 2) -> Generator[Made, None, None]:
    """``make(item)`` of every item in order, made by one thread that is at most ``ahead`` items early.

    An exception in ``make`` is raised when its item's turn comes. Close the iterator to stop the thread early.
    """
    left = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="xsalt-prefetch") as pool:
        pending: deque[Future[Made]] = deque(pool.submit(make, item) for item in islice(left, ahead))
        try:
            while pending:
                made = pending.popleft().result()
                pending.extend(pool.submit(make, item) for item in islice(left, 1))
                yield made
        finally:
            for future in pending:
                future.cancel()
