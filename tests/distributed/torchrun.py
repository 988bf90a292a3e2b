"""Real ranks on loopback: ``torchrun`` starts ``worker.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).parent / "worker.py"


def start(ranks: int, *words: object, flags: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    """``torchrun --standalone --nproc-per-node RANKS worker.py WORDS``, a thread a rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *flags]
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(WORKER), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **paths, **environment},
    )


def torchrun(ranks: int, *words: object, **environment: str) -> tuple[str, str]:
    """What the ranks wrote to stdout and stderr, after all have ended well."""
    process = start(ranks, *words, **environment)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err
