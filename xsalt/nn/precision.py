"""Where bf16 is worth its name."""

from __future__ import annotations

import torch


def bf16_is_native(device: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware.

    A CPU without AVX-512 BF16 or AMX emulates them, some fifty times slower than fp32.
    """
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return any(able.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())  # before torch 2.10
