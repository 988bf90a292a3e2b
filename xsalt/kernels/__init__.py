"""Fused kernels behind one contract each: the definition in PyTorch, C++ for the CPU, Triton for CUDA.

``embedding`` and ``layer`` pick the implementation by device and type. ``select("reference")`` turns all
fast ones off (``xsalt-train kernels=reference``).
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

CHOICES = ("auto", "reference")

_selected = "auto"


def select(name: str) -> None:
    """Which kernels this process uses: ``auto`` (the fastest that is there) or ``reference`` (plain PyTorch)."""
    global _selected
    if name not in CHOICES:
        raise ValueError(f"unknown kernels {name!r}: known: {', '.join(CHOICES)}")
    _selected = name


def selected() -> str:
    return _selected


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def triton_or_reference(device: torch.device) -> str:
    """What a device other than the CPU uses. Triton's interpreter serves tests with ``TRITON_INTERPRET=1``."""
    return "triton" if device.type == "cuda" and _has_triton() else "reference"


def uses_triton(states: torch.Tensor) -> bool:
    """Whether states of such a device and type are computed with in Triton now."""
    fits = states.dtype in (torch.float32, torch.bfloat16) and _selected == "auto"
    return fits and triton_or_reference(states.device) == "triton"


def describe() -> dict[str, str]:
    """Device -> which kernels would be used there, in words."""
    from xsalt.kernels import cpu

    library, build = cpu.library()
    reference = "reference (plain PyTorch)"
    return {
        "cpu": f"C++ ({build})" if library is not None else f"{reference}: {build}",
        "cuda": "Triton" if _has_triton() else f"{reference}: no triton, install it by: pip install triton",
    }
