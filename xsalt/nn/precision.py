"""Where bf16 is worth its name."""

from __future__ import annotations

import torch

from xsalt.kernels.cpu import has_feature


def bf16_is_native(device: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware.

    A CPU without AVX-512 BF16 or AMX emulates them, some fifty times slower than fp32.
    """
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_feature("avx512_bf16", "amx_bf16", "bf16")
