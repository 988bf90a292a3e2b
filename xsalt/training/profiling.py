"""``profile=true``: a trace of some updates for Perfetto or TensorBoard, and a table of what they took time for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from xsalt.logging import say

ACTIVE = 5
"""Updates in the trace."""
ROWS = 40
"""Operators in the table."""


@contextmanager
def profiling(folder: Path, updates: int, after: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each update; writes ``trace.json`` and ``operators.txt`` into ``folder``.

    Args:
        updates: how many the run has left. after: those left out first, fewer if the run is shorter.
    """

    def write(profiler: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS)
        (folder / "operators.txt").write_text(table, encoding="utf-8")
        say(f"profile: open {folder / 'trace.json'} in ui.perfetto.dev; operators by time are in operators.txt")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(skip_first=max(0, min(after, updates - ACTIVE - 1)), wait=0, warmup=1, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, acc_events=True) as profiler:
        yield profiler.step
