"""The kernels for CUDA, checked and measured, and a whole training step against ``transformers``, in one command.

Needs PyTorch and Triton and, to compare with it, ``transformers``: no network, no weights, no tokenizer, no
configuration. ``--tiny`` runs it all in small on the CPU, with the kernels in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]  # runs where xsalt is not installed

import gpu_kernels  # noqa: E402
import gpu_step  # noqa: E402
from gpu_kernels import CUDA, DEVICE, milliseconds  # noqa: E402


def ceilings(tiny: bool) -> dict[str, float]:
    """A matrix product of random numbers in bfloat16, and a copy."""
    size = 256 if tiny else 8192
    a, b = (torch.randn(size, size, device=DEVICE).bfloat16() for _ in range(2))
    c = torch.empty(size * size * (1 if tiny else 8), device=DEVICE)
    to = torch.empty_like(c)
    return {
        "TFLOP/s": 2e-12 * size**3 / (1e-3 * milliseconds(lambda: a @ b, tiny)),
        "copy GB/s": 8e-9 * c.numel() / (1e-3 * milliseconds(lambda: to.copy_(c), tiny)),
    }


def describe() -> dict[str, Any]:
    import triton

    name = torch.cuda.get_device_name() if CUDA else "CPU, kernels by Triton's interpreter"
    return {"device": name, "torch": torch.__version__, "triton": triton.__version__}


def show(name: str, row: Any) -> None:
    if isinstance(row, dict):
        parts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()]
        row = ", ".join(parts)
    elif isinstance(row, list):
        row = " ".join(f"{x:.1e}" if isinstance(x, float) else str(x) for x in row)
    print(f"  {name}: {row}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="some of: check embedding attention norm step profile (all)")
    parser.add_argument("--tiny", action="store_true", help="everything in small, to try the script on a CPU")
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    if not CUDA and not options.tiny:
        parser.error("this machine has no CUDA device: use --tiny to try the script")
    tiny = options.tiny
    results: dict[str, Any] = {"machine": describe()}

    def step() -> dict[str, Any]:
        ceiling = 1e12 * results.get("ceilings", {}).get("TFLOP/s", float("nan"))
        return gpu_step.steps(ceiling, tiny, [4] if tiny else [32, 256])

    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "ceilings": lambda: ceilings(tiny),
        "check": lambda: gpu_kernels.check(tiny),
        "check of a step": lambda: gpu_step.check_step(tiny),
        "embedding": lambda: gpu_kernels.measure_embedding(tiny),
        "attention": lambda: gpu_kernels.measure_attention(tiny),
        "norm": lambda: gpu_kernels.measure_norm(tiny),
        "step": step,
        "profile": lambda: gpu_step.profile(tiny),
    }
    if unknown := set(options.sections) - set(sections):
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}; known: {', '.join(sections)}")
    show("machine", results["machine"])
    for name, section in sections.items():
        if options.sections and name not in (*options.sections, "ceilings"):
            continue
        start = time.perf_counter()
        try:
            results[name] = section()
        except Exception:  # the machine is lent for minutes: what else can be measured is to be
            results[name] = {"error": traceback.format_exc()}
        print(f"{name} ({time.perf_counter() - start:.1f} s)", flush=True)
        for key, row in results[name].items():
            show(key, row)
        if options.json:
            Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(any("error" in part or part.get("failed") for part in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
