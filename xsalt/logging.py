"""What a run says: metrics.jsonl, TensorBoard, a progress bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm


def speaks() -> bool:
    """Whether this process is the one that says and writes things: of the ranks that ``torchrun`` starts, number 0."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """One line to stderr that does not break a progress bar."""
    if speaks():
        tqdm.write(message, file=sys.stderr)


class Progress:
    """Counts steps: a bar on a terminal, else a line now and then (at most one in ``seconds``)."""

    def __init__(self, total: int, what: str, unit: str = "update", start: int = 0, seconds: float = 15.0) -> None:
        self.what, self.unit, self.total, self.done = what, unit, total, start
        self.seconds, self._said, self._began, self._start = seconds, time.monotonic(), time.monotonic(), start
        self._bar = None
        if sys.stderr.isatty() and speaks():
            self._bar = tqdm(total=total, initial=start, desc=what, unit=unit, leave=False)

    def step(self, n: int = 1, note: str = "") -> None:
        self.done += n
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._said >= self.seconds:
            self._said = time.monotonic()
            speed = (self.done - self._start) / max(1e-9, self._said - self._began)
            left = (self.total - self.done) / max(speed, 1e-9)
            say(f"{self.what}: {self.done}/{self.total} {self.unit}s, {left:.0f} s left{'; ' + note if note else ''}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Board:
    """TensorBoard files of a run folder; in a rank other than 0, nothing.

    Args:
        folder: the run folder.
        purge_from: points of this update and later that are there already are not shown any more.
    """

    def __init__(self, folder: Path, purge_from: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board: Any = None
        if not speaks():
            return
        self._hook, threading.excepthook = threading.excepthook, self._told_later
        place = folder / "tensorboard"
        before = set(place.glob("events.*"))
        self._board = SummaryWriter(str(place), purge_step=purge_from)
        own = set(place.glob("events.*")) - before
        if own and before and min(own) < max(before):  # read in the order of their names: second, host, process, number
            self._board.close()
            min(own).unlink()
            time.sleep(1.0 - time.time() % 1.0)
            self._board = SummaryWriter(str(place), purge_step=purge_from)

    def _told_later(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard's own thread dies of a full disk with a traceback; the next call here raises the same error."""
        if not isinstance(args.exc_value, OSError):
            self._hook(args)

    def scalar(self, tag: str, value: float, update: int) -> None:
        if self._board is not None:
            self._board.add_scalar(tag, value, update)

    def text(self, tag: str, markdown: str, update: int) -> None:
        if self._board is not None:
            self._board.add_text(tag, markdown, update)

    def flush(self) -> None:
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        if self._board is None:
            return
        try:
            self._board.close()
        finally:
            threading.excepthook = self._hook


class RunLog(Board):
    """``metrics.jsonl`` and the TensorBoard files of a run that trains.

    Args:
        folder: the run folder.
        resumed_at: updates done before; lines and points that come after are dropped, since they will be written again.
    """

    def __init__(self, folder: Path, resumed_at: int = 0) -> None:
        super().__init__(folder, resumed_at + 1)
        self._file: TextIO | None = None
        if not speaks():
            return
        path = folder / "metrics.jsonl"
        kept: list[str] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["update"] <= resumed_at:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):  # a line cut by a kill
                    continue
        new = path.with_name(f".{path.name}.new")  # a kill in between loses no line
        new.write_text("".join(kept), encoding="utf-8")
        os.replace(new, path)
        self._file = path.open("a", encoding="utf-8")

    def update(self, update: int, epoch: float, values: Mapping[str, float]) -> None:
        """Logs one training update; ``augment/...`` names keep their prefix in TensorBoard, others get ``train/``."""
        if self._file is None:
            return
        row: dict[str, Any] = {"update": update, "epoch": round(epoch, 4)}
        for name, value in values.items():
            self.scalar(name if "/" in name else f"train/{name}", value, update)
            row[name.removeprefix("augment/")] = round(value, 8)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Before a checkpoint: lines and points that a run resumed from it will not write again are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        super().flush()

    def close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        finally:
            super().close()
