"""SIGINT and SIGTERM while a run trains: finish the update, save, leave."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that stop a run after the update that is being done."""


class Interrupted(Exception):
    """A signal asked the run to stop; it has saved. ``exit_code`` is 128 + the signal's number."""

    def __init__(self, number: int, done: str) -> None:
        super().__init__(f"{signal.Signals(number).name}: {done}")
        self.exit_code = 128 + number


class StopSignals:
    """While active, the first SIGINT or SIGTERM only takes a note; a second one ends the process at once."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in STOPPING:
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread (a notebook's worker): leave signals alone
                break
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
