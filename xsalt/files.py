"""Opening files that may be anything: missing, a folder, a pipe, not text, not JSON. Whatever is wrong is a
``UserError`` that names the file."""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from xsalt.errors import UserError

MAX_LINE = 1_000_000
"""Bytes of a line at most, so that a file that isn't text is refused before it fills the memory."""
_LOOKED_AT = 2000
"""Names of a folder among which a misspelt one is looked for."""


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file that holds something. Raises ``UserError`` saying what there is instead.

    A pipe or device is refused unopened: opening would wait for its other end, reading might never end.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path}: is a directory, a file is expected")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: is no regular file (a pipe, socket or device): copy its content to a file")
        file = path.open("rb")
    except FileNotFoundError:
        raise UserError(_missing(path)) from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise UserError(f"{_shown(path)}: can't be read: {_reason(error)}") from error
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise UserError(f"{path}: the file is empty")
    return file


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path}: no such file, nor is there a folder {path.parent}"
    try:
        there = sorted(entry.name for entry, _ in zip(path.parent.iterdir(), range(_LOOKED_AT), strict=False))
    except OSError as error:
        return f"{path}: no such file, and its folder can't be read: {_reason(error)}"
    near = difflib.get_close_matches(path.name, there, n=3)
    return f"{path}: no such file: " + (
        f"did you mean {', '.join(near)}?" if near else f"the folder holds {some(there)}"
    )


def is_folder(path: Path) -> bool:
    """Whether there is a folder. Raises ``UserError`` for a name that no file system takes."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise UserError(f"{_shown(path)}: can't be read: {_reason(error)}") from error


def is_file(path: Path) -> bool:
    """Whether there is a regular file. Raises ``UserError`` for a name that no file system takes."""
    return not is_folder(path) and path.is_file()


def some(names: Sequence[str], most: int = 8) -> str:
    """The first of these names, and how many more there are."""
    return (", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")) or "nothing"


def _shown(path: Path) -> str:
    text = str(path).replace("\0", "\\0")
    return text if len(text) < 300 else f"{text[:100]}... ({len(text)} characters)"


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The content of a file. Raises ``UserError`` if it can't be read, or is longer than ``most`` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise UserError(f"{path}: {size:,} bytes, more than the {most:,} that such a file may have")
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{path}: can't be read: {_reason(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises ``UserError`` that names the file."""
    try:
        value = parse_json(read_bytes(path).decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({str(error)[:200]})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def parse_json(text: str) -> Any:
    """JSON, strictly. Raises ``ValueError``, for a key that stands twice and for too deep nesting too."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice")
    return made


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: it has no half of a surrogate pair, nor a NUL."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in value
