"""Cross-entropy of the task's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from xsalt.batch import IGNORE, Batch
from xsalt.fields import key
from xsalt.protocols import Hidden, Loss, Needs


@dataclass
class CrossEntropyConfig:
    weight: float = key(1.0, "factor on the mean loss, beside other criterions", at_least=0.0)
    label_smoothing: float = key(
        0.0, "share of the probability that is spread evenly over all classes", at_least=0.0, below=1.0
    )


class CrossEntropy:
    """Cross-entropy of the task's labels, counted by sequence; views without a label are left out."""

    Config = CrossEntropyConfig
    layers: Sequence[int] = ()
    needs_labels = True

    def __init__(self, config: CrossEntropyConfig, needs: Needs) -> None:
        self.weight = config.weight
        self.label_smoothing = config.label_smoothing

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return int((batch.label_B != IGNORE).sum())

    def vocabulary_ids(self) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def __call__(self, model: Any, hidden: Hidden, batch: Batch) -> Loss:
        logits_BC = model.classify(hidden, batch.layout)
        loss = F.cross_entropy(
            logits_BC.float(),
            batch.label_B,
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        with torch.no_grad():
            counted = batch.label_B != IGNORE
            right = (logits_BC.argmax(-1) == batch.label_B) & counted
        return Loss(loss, {"accuracy": (right.sum(), counted.sum())})
