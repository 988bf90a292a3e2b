"""Folders that are written whole or not at all, and verified when they are read.

A checkpoint holds ``model.safetensors``, ``config.json``, the tokenizer, for resuming also ``optimizer.safetensors``
and ``state.json``, and ``manifest.json`` with the size and SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xsalt.errors import UserError
from xsalt.files import is_file
from xsalt.files import read_json as read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Has the system write a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Parts:
    """A tensor that comes in parts: those of ``parts()`` one below the other, along the first dimension."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Callable[[], Iterator[Tensor]]


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Parts]) -> None:
    """Writes a safetensors file. Unlike the library's writer it takes tensors in parts, so that none need be whole.

    The format: length of the header (uint64, little-endian), the header (JSON: type, shape and place of each tensor,
    filled with spaces to a multiple of 8 bytes), the bytes of the tensors one after the other.
    """
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    names |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # every tensor is aligned
    header, at = {}, 0
    for name in order:
        tensor = tensors[name]
        end = at + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = tensors[name]
            for part in tensor.parts() if isinstance(tensor, Parts) else [tensor.detach()]:
                file.write(part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        if file.tell() != 8 + len(text) + at:
            raise ValueError(f"{path}: the parts of a tensor are not those that its shape promises")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` whose file takes its place at the end, or vanishes on an error.

    Several processes may write the same file at once: the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield new
        _flush(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, former: Path | None = None) -> Iterator[Path]:
    """Yields an empty temporary folder beside ``folder`` that takes its place at the end, or vanishes on an error.

    An existing ``folder`` is replaced; a crash in between leaves it as ``.NAME.old``, where ``recover`` finds it.

    Args:
        former: where an existing ``folder`` is kept; None: nowhere.
    """
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for path in [p for p in new.rglob("*") if p.is_file()] + [new]:
            _flush(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        if former is not None:
            remove_folder(former)
        os.replace(folder, former or old)
    os.replace(new, folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it is there, such that a crash leaves no half of it under its name."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def recover(folder: Path) -> None:
    """Puts the former folder back if a crash came between moving it away and moving the new one in."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)
    elif old.is_dir():
        shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor | Parts]],
    state: Mapping[str, Any] | None = None,
    extra: Callable[[Path], None] | None = None,
    former: Path | None = None,
) -> None:
    """Writes a checkpoint atomically.

    Args:
        tensors: file name (``model.safetensors`` ...) -> its tensors by name.
        state: contents of ``state.json``, if any.
        extra: writes further files (configuration, tokenizer) into the folder that it is given.
        former: where the checkpoint that was there before is kept; None: nowhere.
    """
    with atomic_folder(folder, former) as new:
        for name, content in tensors.items():
            write_tensors(new / name, content)
        if state is not None:
            (new / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        if extra is not None:
            extra(new)
        files = sorted(p for p in new.rglob("*") if p.is_file())
        manifest = {p.relative_to(new).as_posix(): {"size": p.stat().st_size, "sha256": file_sha256(p)} for p in files}
        (new / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1), encoding="utf-8")


def verify(folder: Path) -> dict[str, str]:
    """Checks every file of a checkpoint against its manifest; returns name -> SHA-256.

    Raises ``UserError`` that names the first file that is missing, cut short or changed.
    """
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(e, dict) and {"size", "sha256"} <= set(e) for e in files.values()
    ):
        raise UserError(f"{folder / MANIFEST}: not the manifest of a checkpoint")
    if MODEL not in files:
        raise UserError(f"{folder / MANIFEST}: does not list {MODEL}: use another checkpoint")
    for name, entry in files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / MANIFEST}: names {name[:80]!r}, which lies outside the checkpoint: refused")
        if not is_file(path):
            raise UserError(f"{path}: missing from the checkpoint: use another checkpoint")
        if path.stat().st_size != entry["size"]:
            raise UserError(
                f"{path}: has {path.stat().st_size} bytes, the manifest says {entry['size']}: use another checkpoint"
            )
        if file_sha256(path) != entry["sha256"]:
            raise UserError(f"{path}: damaged, its SHA-256 differs from the manifest's: use another checkpoint")
    return {name: entry["sha256"] for name, entry in files.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped. Raises ``UserError`` that names a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    # the library itself raises KeyError and AttributeError for types of numbers that this torch lacks
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be read as safetensors, is it complete? ({' '.join(str(error).split())})"
        ) from error


def load_checkpoint(
    folder: Path, verified: Mapping[str, str] | None = None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any] | None]:
    """Tensors by file name, and the contents of ``state.json`` or None.

    Args:
        verified: what ``verify`` gave for the folder; None: it is verified first.
    """
    if verified is None:
        recover(folder)
    names = verify(folder) if verified is None else verified
    tensors = {name: read_tensors(folder / name) for name in names if name.endswith(".safetensors")}
    return tensors, read_json(folder / STATE) if STATE in names else None


def read_state(folder: Path) -> dict[str, Any]:
    """The contents of ``state.json``, verified by themselves. Raises ``UserError`` if they are damaged or missing."""
    files = read_json(folder / MANIFEST).get("files")
    entry = files.get(STATE) if isinstance(files, dict) else None
    stored = read_json(folder / STATE)
    if not isinstance(entry, dict) or file_sha256(folder / STATE) != entry.get("sha256"):
        raise UserError(f"{folder / STATE}: damaged, its SHA-256 differs from the manifest's: use another checkpoint")
    return stored
