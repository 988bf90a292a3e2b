"""Registering a user's own components: installed plug-ins and the Python files of ``--user-dir``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from xsalt.errors import UserError
from xsalt.registry import load_entry_points


def load_plugins(user_dirs: Sequence[Path]) -> None:
    """Registers entry points, then imports every module of the folders. This runs the code in them."""
    load_entry_points()
    for folder in user_dirs:
        load_user_dir(folder)


def load_user_dir(folder: Path) -> None:
    """Imports each ``*.py`` file and each package of a folder, by its own name, in alphabetical order.

    The folder goes to the end of the import path, so that its modules can import each other but replace nothing.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"--user-dir {folder}: {what}; give the folder that holds your .py files")
    files = {path.stem: path for path in folder.glob("*.py")} | {p.parent.name: p for p in folder.glob("*/__init__.py")}
    names = sorted(name for name in files if name.isidentifier() and not name.startswith("__"))
    if not names:
        raise UserError(f"--user-dir {folder}: no Python file in it")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    for name in names:
        _import(name, files[name])


def _import(name: str, file: Path) -> None:
    try:
        module = importlib.import_module(name)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, file)
        raise UserError(f"{file}:{line or 1}: {type(error).__name__}: {error}") from error
    if Path(module.__file__ or "").resolve() != file.resolve():
        raise UserError(f"{file}: a module {name!r} exists already ({module.__file__ or 'built in'}): rename the file")


def _line_in(error: BaseException, file: Path) -> int | None:
    """The last line of the user's file that was running when the error came."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == file:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
