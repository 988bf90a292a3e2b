"""One training step: the only module that ``DistributedDataParallel`` wraps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xsalt.batch import Batch, Layout
from xsalt.protocols import Criterion

Figures = dict[str, tuple[float | Tensor, float | Tensor]]
"""Name -> (sum, count), added over micro-batches and ranks."""


class TrainStep(nn.Module):
    """Embeds, encodes and scores one micro-batch.

    The loss is normalised by the *global* counts (of all micro-batches and ranks), which are known before the forward
    pass, so that gradients summed over micro-batches and ranks are those of one big batch, whatever its split.
    """

    def __init__(
        self, model: Any, criterions: Mapping[str, Criterion], precision: str, augmenters: Iterable[Any] = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.perturb = [augmenter.perturb for augmenter in augmenters if hasattr(augmenter, "perturb")]
        self.criterions = dict(criterions)
        self.precision = precision
        self.keep = sorted({layer for criterion in criterions.values() for layer in criterion.layers})
        # where there is no classifier, nothing reads a layer above those that criterions name
        self.last = max(self.keep) if self.keep and getattr(model, "classifier", model) is None else None

    def flops(self, layout: Layout) -> float:
        """Of forward and backward pass: 6 for a weight of the encoder and a token that is multiplied with it.

        2 in the forward pass and 4 in the backward pass, where the encoder is trained. Attention's own products and the
        heads are left out.
        """
        products: int = self.model.weight_products(layout, self.keep, self.last)
        return (6.0 if any(p.requires_grad for p in self.model.encoder.parameters()) else 2.0) * products

    def count(self, batch: Batch | None) -> dict[str, float]:
        """What each criterion counts in a micro-batch (None: this rank has no example of it)."""
        own = self.criterions.items()
        return {name: 0.0 if batch is None else float(criterion.count(batch)) for name, criterion in own}

    def forward(
        self, batch: Batch, counts: Mapping[str, float], own: Mapping[str, float] | None = None
    ) -> tuple[Tensor, Figures]:
        """The micro-batch's part of the global loss, and figures to log (loss and accuracy of each criterion).

        Args:
            counts: of all micro-batches and ranks.
            own: those of this micro-batch, if they are known: counting on CUDA waits for the device.
        """
        device = batch.ids_T.device
        own = self.count(batch) if own is None else own
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            x_TD = self.model.embed(batch)
            for perturb in self.perturb:
                x_TD = perturb(self.model, x_TD, batch)
            hidden = self.model.encode(x_TD, batch.layout, keep=self.keep, last=self.last)
            total = torch.zeros((), device=device)
            figures: Figures = {}
            for name, criterion in self.criterions.items():
                loss = criterion(self.model, hidden, batch)
                total = total + criterion.weight / max(1.0, counts[name]) * loss.loss_sum
                prefix = "" if len(self.criterions) == 1 else f"{name}_"
                figures[f"{prefix}loss"] = (loss.loss_sum.detach(), own[name])
                figures.update({f"{prefix}{key}": value for key, value in loss.log.items()})
            if len(self.criterions) > 1:  # the weighted total, a mean over what one of them counts
                name = max(counts, key=lambda name: counts[name])
                figures["loss"] = (total.detach() * counts[name], own[name])
        return total, figures
