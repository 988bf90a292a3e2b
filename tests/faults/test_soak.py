"""The soak in small: ``python -m tests.faults.soak`` is the whole one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_runs_killed_at_random_instants_end_as_if_nothing_had_happened() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", "--kills", "5"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5 kills in ") and "differences from the run that nobody killed: 0" in done.stdout
