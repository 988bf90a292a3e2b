"""One run a folder: a lock that names its owner."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xsalt.errors import UserError
from xsalt.logging import say

LOCK = ".lock"
BEAT_S = 10.0
"""Seconds after which the owner touches its lock again, for other machines to see that it lives."""
STALE_S = 60.0
"""A lock of another machine that was not touched for so long is nobody's (its clock may be a little off)."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Within, no other process trains in this run folder, which is made if it is not there.

    The lock is the system's own (``flock``) on ``RUN/.lock``, so it ends with its owner however that dies. The file
    names process, machine and time: where the file system knows no locks, or not those of other machines, they decide.

    Raises:
        UserError: if another process holds it (the message names process and machine), or the folder can't be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = _open(run)
    except OSError as error:
        raise UserError(f"run={run}: cannot be written: {error.strerror}: choose another folder") from error
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(handle, over), daemon=True, name="xsalt-lock")
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        with contextlib.suppress(OSError):
            (run / LOCK).unlink()  # by its holder, before the lock goes: who waits at the old file looks again
            run.rmdir()  # only if nothing was made in it
        os.close(handle)


def _beat(handle: int, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(handle)


def _open(run: Path) -> int:
    """The open lock file, locked and signed."""
    path = run / LOCK
    while True:
        run.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            touched, owner, sure = os.fstat(handle).st_mtime, _owner(handle), True
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _refusal(run, owner) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                sure = False
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == path.stat().st_ino:
                    _judge(run, owner, time.time() - touched, sure)
                    mine = {"pid": os.getpid(), "host": socket.gethostname(), "began": _began(os.getpid())}
                    text = json.dumps(mine | {"since": time.strftime("%Y-%m-%d %H:%M:%S")})
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, text.encode(), 0)
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner was done and removed the file meanwhile


def _judge(run: Path, owner: dict[str, Any], age: float, sure: bool) -> None:
    """Raises if the owner named in a file that could be locked may live; says so if one died."""
    if not owner:
        return
    here = owner.get("host") == socket.gethostname()
    alive = age < STALE_S if not here else not sure and owner.get("began") == _began(owner.get("pid")) is not None
    if alive:
        raise _refusal(run, owner)
    say(f"{run}: process {owner.get('pid')} on {owner.get('host')} left its lock behind: taking it over")


def _refusal(run: Path, owner: dict[str, Any]) -> UserError:
    who = (
        f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}" if owner else "another process"
    )
    return UserError(f"run={run}: in use by {who}: wait for it, or choose another folder")


def _owner(handle: int) -> dict[str, Any]:
    """Who signed the lock; nobody if the file is new, or its owner died while signing."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _began(pid: Any) -> str | None:
    """When a process of this machine began, as the system counts it, since numbers come again; None: it is over."""
    try:
        stat = Path(f"/proc/{int(pid)}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _signalled(pid)
    except (OSError, ValueError, TypeError, IndexError):
        return None


def _signalled(pid: Any) -> str | None:
    """Without /proc: whether there is such a process."""
    try:
        os.kill(int(pid), 0)
    except (OSError, ValueError, TypeError):
        return None
    return "alive"
