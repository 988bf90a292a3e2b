"""How models are run without training them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from xsalt.kernels.layer import weights_stay
from xsalt.memory import give_back_freed_memory, keep_freed_memory
from xsalt.parallel import put_together


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """No dropout, no gradients, weights that stay as they are; the training mode is restored after."""
    was = model.training
    model.eval()
    keep_freed_memory()
    try:
        with put_together(model) as split:
            if split:  # these weights do not stay, and inference tensors would not do in training
                with torch.no_grad():
                    yield
            else:
                with torch.inference_mode(), weights_stay():
                    yield
    finally:
        model.train(was)
        give_back_freed_memory()
