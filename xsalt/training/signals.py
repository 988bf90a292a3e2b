"""SIGINT and SIGTERM while a run trains: finish the update, save, leave."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from xsalt import distributed


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
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread (a notebook's worker): leave signals alone
                break
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def asked(self, ranks: float) -> int | None:
        """The signal to stop by after this update, if any: the same answer on every rank.

        Args:
            ranks: how many ranks had caught one when they last exchanged figures. A signal reaches them at different
                updates, and all must do the same ones; a process alone needs to ask nobody.
        """
        if distributed.world_size() == 1:
            return self.caught
        return (self.caught or signal.SIGTERM) if ranks else None

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
