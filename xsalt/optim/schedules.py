"""Learning-rate schedules: pure functions of the update, so that a resumed run needs no state."""

from __future__ import annotations

import math


def rate(kind: str, update: int, total: int, warmup: float) -> float:
    """The factor on the learning rate for update number ``update`` (from 0) of ``total``.

    Args:
        kind: ``linear`` (to 0 at the last update), ``cosine`` (the same end, half a cosine), ``constant``.
        warmup: share of all updates, in [0, 1), during which the factor rises linearly from 0.
    """
    rising = round(warmup * total)
    if update < rising:
        return (update + 1) / rising
    if kind == "constant":
        return 1.0
    left = (total - update) / max(1, total - rising)
    return left if kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
