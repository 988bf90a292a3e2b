"""Global batches of examples of similar length, a pure function of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xsalt.errors import UserError
from xsalt.randomness import permutation

POOL = 64
"""Batches whose examples are sorted together: enough for little padding, few enough to differ from epoch to epoch."""
PADDED = 1.25
"""A batch's padded size (sequences times the longest) stays below this multiple of ``max_tokens``."""


def plan_batches(
    lengths: npt.ArrayLike,
    *,
    size: int | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
) -> list[npt.NDArray[np.int64]]:
    """Numbers of the examples of each batch; every example is in exactly one batch.

    Shuffled: a permutation by (seed, epoch) is cut into pools of ``POOL`` batches, each pool sorted by length and cut
    into batches, and the order of the batches permuted. Unshuffled (evaluation): all examples sorted by length.

    Args:
        lengths: tokens of each example.
        size: sequences of a batch at most. max_tokens: tokens of a batch at most, padding not counted (see ``PADDED``).

    Raises:
        UserError: if one example alone has more than ``max_tokens``.
        ValueError: if neither bound is given.
    """
    if size is None and max_tokens is None:
        raise ValueError("one of size and max_tokens is needed")
    length_of: npt.NDArray[np.int64] = np.asarray(lengths, dtype=np.int64)
    n = len(length_of)
    if n == 0:
        return []
    if max_tokens is not None and int(length_of.max()) > max_tokens:
        raise UserError(
            f"batch.max_tokens={max_tokens} is less than the longest example has: {int(length_of.max())} tokens"
        )
    if not shuffle:
        return _cut(np.argsort(length_of, kind="stable"), length_of, size, max_tokens)
    order = permutation(seed, epoch, "batching/examples", n)
    batches: list[npt.NDArray[np.int64]] = []
    for pool in np.split(order, _pool_ends(length_of[order], size, max_tokens)):
        batches += _cut(pool[np.argsort(length_of[pool], kind="stable")], length_of, size, max_tokens)
    return [batches[i] for i in permutation(seed, epoch, "batching/batches", len(batches))]


def split_update(
    batches: Sequence[npt.NDArray[np.int64]], lengths: npt.NDArray[np.int64], ranks: int
) -> list[list[npt.NDArray[np.int64]]]:
    """For each rank, its share of each of an update's batches (numbers of examples, in their order; it may be empty).

    The longest example left goes to the rank with the fewest tokens so far, over all batches of the update, since ranks
    wait for each other at its end only. (Graham 1969: the largest load is then at most 4/3 of the least possible.)
    """
    if ranks == 1:
        return [list(batches)]
    tokens = np.zeros(ranks, dtype=np.int64)
    shares: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(ranks)]
    for batch in batches:
        owner_B = np.zeros(len(batch), dtype=np.int64)
        for at in np.argsort(-lengths[batch], kind="stable"):
            owner_B[at] = np.argmin(tokens)
            tokens[owner_B[at]] += lengths[batch[at]]
        for rank, share in enumerate(shares):
            share.append(batch[owner_B == rank])
    return shares


def _pool_ends(lengths: npt.NDArray[np.int64], size: int | None, max_tokens: int | None) -> npt.NDArray[np.int64]:
    """Where to cut permuted examples into pools, which hold whole batches of ``size``: only the last batch is short."""
    per_pool = len(lengths)
    if size is not None:
        per_pool = POOL * size
    if max_tokens is not None:
        tokens = POOL * max_tokens
        per_pool = min(per_pool, max(1, int(tokens / lengths.mean())))
        if size is not None:
            per_pool = max(size, per_pool // size * size)
    return np.arange(per_pool, len(lengths), per_pool, dtype=np.int64)


def _cut(
    order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], size: int | None, max_tokens: int | None
) -> list[npt.NDArray[np.int64]]:
    """Cuts examples sorted by length, as many into each batch as the bounds allow."""
    if max_tokens is None:
        assert size is not None
        return [order[i : i + size] for i in range(0, len(order), size)]
    sorted_lengths = lengths[order]
    ends = np.cumsum(sorted_lengths)
    batches: list[npt.NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        before = ends[start] - sorted_lengths[start]
        stop = int(np.searchsorted(ends, before + max_tokens, side="right"))
        if size is not None:
            stop = min(stop, start + size)
        # Lengths ascend, so the padded size grows with every example that is added.
        padded = sorted_lengths[start:stop] * np.arange(1, stop - start + 1)
        stop = start + max(1, int(np.searchsorted(padded, PADDED * max_tokens, side="right")))
        batches.append(order[start:stop])
        start = stop
    return batches
