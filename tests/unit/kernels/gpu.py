"""Where the tests of the Triton kernels run: on the GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xsalt.batch import Layout
from xsalt.kernels.philox import SiteKey

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def placed(value: Any) -> Any:
    """Tensors, also those inside lists, dictionaries, keys and layouts, on ``DEVICE``."""
    if isinstance(value, Tensor):
        return value.detach().to(DEVICE).requires_grad_(value.requires_grad)
    if isinstance(value, list):
        return [placed(item) for item in value]
    if isinstance(value, dict):
        return {name: placed(item) for name, item in value.items()}
    if isinstance(value, SiteKey):
        return replace(value, token_T3=value.token_T3.to(DEVICE))
    if isinstance(value, Layout):
        return Layout(value.lengths_B, DEVICE)
    return value
