"""How far a run is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

STEADY_AFTER = 10
"""Updates left out of the steady-state speed: caches and allocators warm up."""


@dataclass
class State:
    """How far a run is. With the weights and the optimizer's state it is all that a resumed run needs."""

    update: int = 0
    """Updates done, those that were skipped included."""
    epoch: int = 0
    in_epoch: int = 0
    """Updates of the current epoch done; 0 at its end, when ``epoch`` is the next one."""
    examples: int = 0
    wall_s: float = 0.0
    steady_s: float = 0.0
    steady_examples: int = 0
    best: float = -math.inf
    best_update: int = -1
    bad_evaluations: int = 0
    """Evaluations since the best one."""
    word_decay: float = 1.0
    """Product of 1 - lr * weight decay over all updates: what the word rows never touched have decayed by."""
    stopped_early: bool = False
    skipped_updates: int = 0
    """Updates without a step of the optimizer, because the loss or the gradient was no finite number."""
    learnt: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Examples classified rightly and examples, in the updates from which it is judged whether training works."""
    window: list[dict[str, Any]] = field(default_factory=list)
    """What goes into the next logged line so far (``Window.as_dict``)."""
    resumed_from: list[int] = field(default_factory=list)
    """Updates at which the run was resumed."""

    def count(self, examples: int, seconds: float, of_epoch: int) -> None:
        """Counts an update that is done, of an epoch of so many; after its last one the next epoch begins."""
        self.update, self.in_epoch = self.update + 1, self.in_epoch + 1
        if self.in_epoch == of_epoch:
            self.epoch, self.in_epoch = self.epoch + 1, 0
        self.examples, self.wall_s = self.examples + examples, self.wall_s + seconds
        if self.update > STEADY_AFTER:
            self.steady_s, self.steady_examples = self.steady_s + seconds, self.steady_examples + examples

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"best": self.best if math.isfinite(self.best) else None}
