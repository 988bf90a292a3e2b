"""Checkpoints written beside training: what it computes with is copied, and written by a thread of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xsalt.errors import UserError


class Writer:
    """Does one piece of work at a time, on a thread of its own (``background`` false: at once).

    An error of the work is raised to whoever asks next, by ``submit``, ``check`` or ``wait``.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Begins with the work, when that before it is done: there is never more than one copy of the weights."""
        self.wait()
        if not self.background:
            work()
            return
        self._thread = threading.Thread(target=self._do, args=(work,), name="xsalt-checkpoint")
        self._thread.start()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # it is raised where it can be told
            self._error = error

    def check(self) -> None:
        """Raises the error of work that is over."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()


@contextmanager
def written(folder: Path, by_training: bool = True) -> Iterator[None]:
    """A full disk, a read-only or vanished folder inside the block is one line for the user.

    Args:
        by_training: whether it is the folder of a run under way; results of an evaluation can go elsewhere.
    """
    try:
        yield
    except ConnectionError:  # of another rank
        raise
    except OSError as error:
        if by_training and is_gone(folder):
            raise UserError(f"{folder}: the run folder is gone, nothing can be saved: bring it back") from error
        where = os.fsdecode(error.filename) if error.filename else folder
        remedy = "what was saved before is kept, run again when that is repaired"
        if not by_training:
            remedy = "give the results a folder with run=DIR"
        raise UserError(f"{where}: {error.strerror or error}: {remedy}") from error


def is_gone(folder: Path) -> bool:
    """Whether a run folder is no longer what it was made as."""
    return not (folder / "config.yaml").exists()
