"""Signs that a run goes wrong: numbers that are none, and accuracy that stays at chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xsalt import distributed
from xsalt.batch import IGNORE, Batch
from xsalt.logging import say
from xsalt.nn.dropout import set_dropout_key
from xsalt.parallel import is_sharded
from xsalt.training.state import State

LEARNT_FROM, LEARNT_BY = 100, 200
"""The training accuracy of the updates between these is what tells whether anything is learnt."""

NAMED = 8
"""Examples that a message names at most."""


def backward(loss: Tensor) -> None:
    """Adds the loss's gradient to the parameters': one that is no number anywhere if the loss is none.

    So the norm of the gradient, after ranks have exchanged it, tells every rank the same about all of their losses, and
    the device need not be waited for.
    """
    if loss.requires_grad:  # nothing to predict in this batch, with a frozen encoder
        one = torch.ones_like(loss)
        torch.autograd.backward(loss, torch.where(loss.detach().isfinite(), one, torch.full_like(one, math.nan)))


def offenders(
    step: Any, batches: Sequence[Batch], counts: Mapping[str, float], seed: int, update: int, uids: Sequence[str]
) -> list[str]:
    """Names of the examples of those micro-batches, of all ranks, whose loss or gradient is not finite.

    Each is computed with once more, alone, which dropout by key makes the same computation. It is all of the update's
    examples if none fails alone, or if the encoder is split over ranks.
    """
    step = getattr(step, "module", step)
    device = next(step.parameters()).device
    trained = [p for p in step.parameters() if p.requires_grad]
    bad = []
    split = any(is_sharded(p) for p in trained)  # then every pass is one of all ranks together
    for batch in () if split else batches:
        placed = batch.to(device)
        set_dropout_key(step.model, seed, update, placed)
        loss, _ = step(placed, counts)
        if not math.isfinite(float(loss.detach())) or not _finite_gradient(loss, trained):
            bad.append(batch)
    found = [int(uid) for batch in bad for uid in batch.uid_B]
    everywhere = [uid for of_rank in distributed.from_all(found) for uid in of_rank]
    if not everywhere:
        mine = [int(uid) for batch in batches for uid in batch.uid_B]
        everywhere = [uid for of_rank in distributed.from_all(mine) for uid in of_rank]
    return [uids[i] for i in dict.fromkeys(everywhere)]


def _finite_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    """Of one loss alone: it is added to no parameter, and no rank is told."""
    if not loss.requires_grad:
        return True
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    grads = [grad.coalesce().values() if grad.is_sparse else grad for grad in found if grad is not None]
    return all(bool(grad.isfinite().all()) for grad in grads)


def named(uids: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(uids) - NAMED} more" if len(uids) > NAMED else ""
    return ", ".join(uids[:NAMED]) + more


def majority(labels: np.ndarray) -> float | None:
    """Share of the most frequent label: what answering it always would score. None without labels."""
    known = labels[labels != IGNORE]
    return float(np.bincount(known).max() / len(known)) if len(known) else None


def at_chance(accuracy: float, n: float, share: float) -> bool:
    """Whether it is within two standard errors of what always answering the most frequent label scores."""
    return n > 0 and accuracy <= share + 2 * math.sqrt(share * (1 - share) / n)


def watch_learning(
    state: State, figures: Mapping[str, Sequence[float | Tensor]], name: str | None, log_every: int, labels: np.ndarray
) -> None:
    """Called at each logged line: warns once, if by then nothing has been learnt.

    Args:
        figures: sums and counts since the last line. name: that of the accuracy on labels among them, if there is one.
    """
    if name is None or name not in figures or not LEARNT_FROM < state.update < LEARNT_BY + log_every:
        return
    right, count = (float(value) for value in figures[name])
    state.learnt = [state.learnt[0] + right, state.learnt[1] + count]
    share = majority(labels)
    if state.update < LEARNT_BY or share is None or not state.learnt[1]:
        return
    accuracy = state.learnt[0] / state.learnt[1]
    if at_chance(accuracy, state.learnt[1], share):
        say(
            f"warning: after {state.update} updates the training accuracy is at chance: {100 * accuracy:.1f} % since "
            f"update {LEARNT_FROM}, and always the most frequent label has {100 * share:.1f} %: "
            "try a lower optim.lr, a longer optim.warmup, or look at the data"
        )


def warn_at_chance(accuracy: float, n: int, labels: np.ndarray) -> float:
    """The accuracy on a dev set; says so if it is at chance."""
    share = majority(labels)
    if share is not None and at_chance(accuracy, n, share):
        say(
            f"warning: this dev accuracy is at chance: {100 * accuracy:.1f} % of {n}, "
            f"and always the most frequent label has {100 * share:.1f} %"
        )
    return accuracy
