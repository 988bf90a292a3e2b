"""Consistency: the views of an example are to get one answer.

The symmetric Kullback-Leibler divergence between the class probabilities of an example's first view and of each other
one: (KL(p || q) + KL(q || p)) / 2, with gradients through both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from xsalt.batch import MASKED_VIEW, Batch, to_device
from xsalt.errors import UserError
from xsalt.fields import key
from xsalt.protocols import Hidden, Loss, Needs

Numbers = npt.NDArray[np.int64]


@dataclass
class ConsistencyConfig:
    weight: float = key(1.0, "factor on the mean divergence, beside other criterions (assumed)", at_least=0.0)


class Consistency:
    """Symmetric KL divergence between the views of an example, counted by pair of views.

    Raises:
        UserError: by ``prepare``, if no example has several views.
    """

    Config = ConsistencyConfig
    layers: Sequence[int] = ()
    needs_labels = True

    def __init__(self, config: ConsistencyConfig, needs: Needs) -> None:
        self.weight = config.weight

    def prepare(self, batch: Batch) -> Batch:
        if self.count(batch) == 0:
            raise UserError(
                "criterion consistency: no example has several views, so there is nothing to compare: "
                "add --augmenter codeswitch augmenter.codeswitch.clean=true"
            )
        return batch

    def count(self, batch: Batch) -> int:
        return len(view_pairs(batch)[0])

    def vocabulary_ids(self) -> npt.NDArray[np.int64]:
        return np.zeros(0, dtype=np.int64)

    def __call__(self, model: Any, hidden: Hidden, batch: Batch) -> Loss:
        log_BC = F.log_softmax(model.classify(hidden, batch.layout).float(), dim=-1)
        first, other = (log_BC[to_device(torch.from_numpy(rows), log_BC.device)] for rows in view_pairs(batch))
        divergence_P = 0.5 * ((first.exp() - other.exp()) * (first - other)).sum(-1)
        with torch.no_grad():
            same = (first.argmax(-1) == other.argmax(-1)).sum()
        return Loss(divergence_P.sum(), {"agreement": (same, float(len(divergence_P)))})


def view_pairs(batch: Batch) -> tuple[Numbers, Numbers]:
    """Rows of the first view of an example, and of each other one; masked copies are no views."""
    uid_B, view_B = batch.uid_B.cpu().numpy(), batch.view_B.cpu().numpy()
    rows = np.flatnonzero(view_B < MASKED_VIEW)
    rows = rows[np.lexsort((view_B[rows], uid_B[rows]))]
    new = np.r_[True, uid_B[rows][1:] != uid_B[rows][:-1]] if len(rows) else np.zeros(0, dtype=bool)
    first = rows[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))] if len(rows) else rows
    return first[~new], rows[~new]
