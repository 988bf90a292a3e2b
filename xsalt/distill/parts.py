"""The spans of a table under construction, each in a file of its own: what a killed build has done is not done again.

A part counts only if it is whole: it is flushed to the disk under another name before it gets its own, and its SHA-256
covers the fingerprint of the table too, so that parts of other tables are never used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xsalt import distributed
from xsalt.data.substitutions import Ids, Probabilities
from xsalt.errors import UserError
from xsalt.logging import say


@dataclass(frozen=True)
class Parts:
    """Finished spans in a folder.

    Attributes:
        fingerprint: of the table that they belong to.
        shape: languages and k, the last two axes of the arrays.
    """

    folder: Path
    fingerprint: str
    shape: tuple[int, int]

    def write(self, span: int, ids_TLk: Ids, probability_TLk: Probabilities) -> None:
        """Keeps a span, all or nothing. It is on the disk when this returns."""
        content = ids_TLk.astype("<i4").tobytes() + probability_TLk.astype("<f2").tobytes()
        write_sealed(self._path(span), self._about(span), content)

    def read(self, span: int, tokens: int) -> tuple[Ids, Probabilities] | None:
        """Ids and probabilities of a span of so many tokens; None if it isn't there whole."""
        content = read_sealed(self._path(span), self._about(span))
        shape = (tokens, *self.shape)
        cut = 4 * int(np.prod(shape))
        if content is None or len(content) * 2 != cut * 3:
            return None
        ids = np.frombuffer(content[:cut], dtype="<i4").reshape(shape)
        return ids, np.frombuffer(content[cut:], dtype="<f2").reshape(shape)

    def _path(self, span: int) -> Path:
        return self.folder / f"{span}.part"

    def _about(self, span: int) -> str:
        return f"{self.fingerprint} {span} {self.shape} "


def write_sealed(path: Path, about: str, content: bytes) -> None:
    """Writes a file, all or nothing, with the SHA-256 of what it is about and says. It is on the disk afterwards."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        file.write(_seal(about, content))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _flush_folder(path.parent)


def read_sealed(path: Path, about: str) -> bytes | None:
    """What ``write_sealed`` wrote about the same; None if it isn't there whole."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    return raw[:-32] if _seal(about, raw[:-32]) == raw[-32:] else None


def _seal(about: str, content: bytes) -> bytes:
    digest = hashlib.sha256(about.encode())
    digest.update(content)
    return digest.digest()


def _flush_folder(folder: Path) -> None:
    """Without this a renamed file may be gone after a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Raises ``UserError`` where the file system refuses something inside the block."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: the substitution table can't be written ({error.strerror or error}): make room (what is done "
            "is kept), or give another folder (out=DIR; for the cache XSALT_CACHE)"
        ) from error


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """Where the parts of the table at ``folder`` lie, for one process at a time: others wait until it is done.

    What is there after a kill is left for the next one; the caller removes it when the table is finished. On a file
    system without locks each process has a place of its own, gone when it ends: nothing then survives a kill.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.parent / f".{folder.name}-parts"
    lock = folder.parent / f".{folder.name}-lock"
    handle = _acquire(lock, folder)
    if handle is None:
        place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-own-"))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return
    try:
        place.mkdir(exist_ok=True)
        yield place
        with contextlib.suppress(FileNotFoundError):
            lock.unlink()  # only after success: after a failure the parts wait for the next process, under this lock
    finally:
        os.close(handle)


@contextmanager
def shared_workplace(folder: Path) -> Iterator[Path]:
    """``workplace`` for all ranks together: rank 0 holds it, and all work in it.

    Raises:
        UserError: if a rank doesn't see it.
    """
    with contextlib.ExitStack() as held:
        place = held.enter_context(workplace(folder)) if distributed.is_first() else folder
        distributed.wait_for_all()  # another process may have it
        place = folder.parent / distributed.from_first(place.name)
        seen = distributed.from_all(place.is_dir())
        blind = [str(number) for number, sees in enumerate(seen) if not sees]
        if blind:
            raise UserError(
                f"{folder.parent}: rank {', '.join(blind)} doesn't see what rank 0 writes in it: "
                "set XSALT_CACHE to one folder for all ranks, on a file system that their machines share"
            )
        yield place


def _acquire(lock: Path, folder: Path) -> int | None:
    """Locks the file, waiting for whoever holds it; None where the file system has no locks."""
    told = False
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    say(f"substitutions: another process is building {folder}: waiting for it")
                told = True
                fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            os.close(handle)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == lock.stat().st_ino:
                return handle
        os.close(handle)  # its holder was done and removed the file meanwhile: whoever comes now makes a new one
