"""One damaged file, read: what came of it, how long it took and how much memory it took."""

from __future__ import annotations

import random
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.faults.readers import Reader
from xsalt.errors import UserError

SECONDS, WAITING = 5, 30
"""Of the processor, and on the clock (a busy machine makes any file slow): above them a reader hangs."""
MEMORY_PER_BYTE, MEMORY = 400, 96 << 20
"""Bytes of memory that reading may take: so many for each byte of the file, and so many in any case."""


class HangError(BaseException):
    """Nothing that catches ``Exception`` catches it."""


@dataclass(frozen=True)
class Outcome:
    """``fault`` is None if all is well; else what went wrong. ``accepted``: the reader gave a result."""

    accepted: bool
    fault: str | None
    seconds: float
    memory: int
    message: str = ""


def damaged(reader: Reader, good: bytes, case: int) -> bytes:
    """The bytes of a case: always the same ones for a reader and a number."""
    rng = random.Random(f"{reader.name} {case}")
    raw = good
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        raw = rng.choice(reader.mutators)(rng, raw) if raw else raw
    return raw


def peak() -> int:
    """Most resident memory since ``reset_peak``, in bytes; 0 where the system doesn't tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    clocks = {signal.ITIMER_PROF: (signal.SIGPROF, seconds), signal.ITIMER_REAL: (signal.SIGALRM, WAITING)}
    before = {number: signal.signal(number, stop) for number, _ in clocks.values()}
    for clock, (_, limit) in clocks.items():
        signal.setitimer(clock, limit)
    try:
        yield
    finally:
        for clock in clocks:
            signal.setitimer(clock, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def attempt(reader: Reader, folder: Path) -> Outcome:
    """Reads the folder as it stands."""
    reset_peak()
    before, began = peak(), time.monotonic()
    accepted, fault, message, result = False, None, "", None
    try:
        with alarm(SECONDS):
            result = reader.read(folder)
        accepted = True
    except UserError as error:
        message = str(error)
        if "\n" in message or len(message) > 2000:
            fault = f"the message is no line: {message[:300]!r}"
        elif str(folder) not in message:
            fault = f"the message names no file: {message[:300]!r}"
    except HangError:
        fault = f"more than {SECONDS} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        fault = "".join(traceback.format_exception(error)[-3:])
    seconds, memory = time.monotonic() - began, max(0, peak() - before)
    size = (folder / reader.file).stat().st_size
    if fault is None and memory > MEMORY + MEMORY_PER_BYTE * size:
        fault = f"{memory >> 20} MiB of memory for a file of {size} bytes"
    if accepted and fault is None:
        try:
            reader.check(folder, result)
        except Exception as error:
            fault = "accepted, but: " + "".join(traceback.format_exception(error)[-2:])
    return Outcome(accepted, fault, seconds, memory, message)


def run_case(reader: Reader, folder: Path, good: bytes, case: int) -> Outcome:
    """Damages the file in its folder, reads it, and puts nothing back."""
    (folder / reader.file).write_bytes(damaged(reader, good, case))
    reader.seal(folder)
    return attempt(reader, folder)
