"""Substitution tables: for every token of a corpus and every target language, the substitutions that the model
predicts.

A folder with ``ids.npy`` (int32) and ``probability.npy`` (float16), both of shape (N tokens, L languages, k), best
first and -1 where there is none; ``manifest.json`` (fingerprint, languages, sizes, SHA-256 of the files) and
``stats.json``. Arrays are memory-mapped: a table may be larger than memory. An id equal to the source token's means
"leave it as it is".
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xsalt.errors import UserError

Ids = npt.NDArray[np.int32]
Probabilities = npt.NDArray[np.float16]
FORMAT = 1
IDS, PROBABILITY, MANIFEST, STATS = "ids.npy", "probability.npy", "manifest.json", "stats.json"
_REBUILD = "delete the folder, and it is built anew"


def table_fingerprint(parts: Mapping[str, object]) -> str:
    """SHA-256 over what a table is a function of (model, tokenizer, data, languages, vocabularies, configuration)."""
    return hashlib.sha256(json.dumps([FORMAT, dict(parts)], sort_keys=True).encode()).hexdigest()


class SubstitutionTable:
    """A table opened for reading.

    Attributes:
        languages: target languages, in the order of the arrays' second axis.
        ids_NLK, probability_NLK: memory-mapped arrays.
        fingerprint: what the table is a function of.
    """

    def __init__(
        self, folder: Path, fingerprint: str, languages: tuple[str, ...], ids: Ids, probability: Probabilities
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.languages = languages
        self.ids_NLK = ids
        self.probability_NLK = probability

    @classmethod
    def open(cls, folder: Path, fingerprint: str | None = None) -> SubstitutionTable:
        """Opens a table and checks its files.

        Args:
            fingerprint: what it must be a function of; None accepts any.

        Raises:
            UserError: if a file is missing, truncated or altered, or if the table was made for something else.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            languages, found, files = (
                tuple(manifest["languages"]),
                str(manifest["fingerprint"]),
                dict(manifest["files"]),
            )
            if manifest["format"] != FORMAT:
                raise UserError(
                    f"{folder}: a substitution table of format {manifest['format']}, not {FORMAT}: {_REBUILD}"
                )
        except OSError as error:
            raise UserError(
                f"{folder}: no substitution table there ({MANIFEST}: {error.strerror}): make one with xsalt-augment"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / MANIFEST}: damaged ({type(error).__name__}): {_REBUILD}") from error
        if fingerprint is not None and found != fingerprint:
            raise UserError(
                f"{folder}: made for another model, tokenizer, data set or configuration "
                f"({found[:8]}, not {fingerprint[:8]}): "
                "make one for this run with xsalt-augment"
            )
        for name in (IDS, PROBABILITY):
            _check_file(folder / name, files.get(name, {}))
        ids = np.load(folder / IDS, mmap_mode="r")
        probability = np.load(folder / PROBABILITY, mmap_mode="r")
        if ids.shape != probability.shape or ids.ndim != 3 or ids.shape[1] != len(languages):
            raise UserError(f"{folder}: damaged (shapes {ids.shape} and {probability.shape}): {_REBUILD}")
        return cls(folder, found, languages, ids, probability)

    def __len__(self) -> int:
        return len(self.ids_NLK)

    def lookup(self, corpus_T: npt.NDArray[np.int64], language_T: npt.NDArray[np.int64]) -> tuple[Ids, Probabilities]:
        """Ids and probabilities of shape (T, k) for tokens of the corpus, each in its own language (an index)."""
        return self.ids_NLK[corpus_T, language_T], self.probability_NLK[corpus_T, language_T]

    def vocabulary_ids(self, threshold: float | npt.NDArray[np.float32], k: int | None = None) -> npt.NDArray[np.int64]:
        """Sorted ids that some token may become.

        Args:
            threshold: least probability that is accepted, one for all languages or of shape (L,).
            k: how many of a token's substitutions count, best first; None: all.
        """
        threshold_L1 = np.asarray(threshold, dtype=np.float32).reshape(-1, 1)
        seen = np.zeros(1, dtype=np.bool_)
        for start in range(0, len(self), 1 << 18):
            part = (slice(start, start + (1 << 18)), slice(None), slice(k))
            ids = self.ids_NLK[part]
            taken = ids[(ids >= 0) & (self.probability_NLK[part].astype(np.float32) >= threshold_L1)]
            if len(taken) and int(taken.max()) >= len(seen):
                seen = np.concatenate([seen, np.zeros(int(taken.max()) + 1 - len(seen), dtype=np.bool_)])
            seen[taken] = True
        return np.flatnonzero(seen)

    def coverage(self, threshold: float) -> npt.NDArray[np.float64]:
        """Share of all tokens that have a substitution at this threshold, by language. Shape (L,)."""
        found_L = np.zeros(len(self.languages))
        for start in range(0, len(self), 1 << 18):
            part = slice(start, start + (1 << 18))
            sure = self.probability_NLK[part, :, 0].astype(np.float32) >= threshold
            found_L += ((self.ids_NLK[part, :, 0] >= 0) & sure).sum(0)
        return found_L / max(1, len(self))

    def copy_to(self, folder: Path) -> SubstitutionTable:
        """Copies the table, all or nothing, in place of another table at most. Raises ``UserError`` for any other
        folder."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".copy-"))
        try:
            shutil.copytree(self.folder, building, dirs_exist_ok=True)
            _put_in_place(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return SubstitutionTable.open(folder, self.fingerprint)

    def stats(self) -> dict[str, Any]:
        """The content of ``stats.json``."""
        stats: dict[str, Any] = json.loads((self.folder / STATS).read_text(encoding="utf-8"))
        return stats


def _check_file(path: Path, expected: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing from the substitution table: {_REBUILD}")
    if path.stat().st_size != expected.get("size"):
        raise UserError(f"{path}: {path.stat().st_size} bytes instead of {expected.get('size')}: {_REBUILD}")
    if file_hash(path) != expected.get("sha256"):
        raise UserError(f"{path}: its content was altered (SHA-256 differs): {_REBUILD}")


def file_hash(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class TableWriter:
    """Arrays of a table under construction, to be filled slice by slice."""

    def __init__(self, folder: Path, tokens: int, languages: Sequence[str], k: int, fingerprint: str) -> None:
        self.folder = folder
        self.languages = tuple(languages)
        self.fingerprint = fingerprint
        shape = (tokens, len(self.languages), k)
        self.ids_NLK = np.lib.format.open_memmap(folder / IDS, mode="w+", dtype=np.int32, shape=shape)
        self.probability_NLK = np.lib.format.open_memmap(folder / PROBABILITY, mode="w+", dtype=np.float16, shape=shape)
        self.ids_NLK[:] = -1
        self.stats: dict[str, Any] = {}

    def finish(self) -> None:
        self.ids_NLK.flush()
        self.probability_NLK.flush()
        files = {
            name: {"size": (self.folder / name).stat().st_size, "sha256": file_hash(self.folder / name)}
            for name in (IDS, PROBABILITY)
        }
        tokens, _, k = self.ids_NLK.shape
        manifest = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "languages": list(self.languages),
            "tokens": tokens,
            "k": k,
            "files": files,
        }
        write_json(self.folder / STATS, self.stats)
        write_json(self.folder / MANIFEST, manifest)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def new_table(folder: Path, tokens: int, languages: Iterable[str], k: int, fingerprint: str) -> Iterator[TableWriter]:
    """Gives a table to fill; when the block ends without an error it takes its place at ``folder``, all or nothing.

    Another process may have put the same table there meanwhile: then this one is dropped.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:16]}-"))
    try:
        writer = TableWriter(building, tokens, tuple(languages), k, fingerprint)
        yield writer
        writer.finish()
        building.chmod(0o755)
        _put_in_place(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _put_in_place(building: Path, folder: Path) -> None:
    try:
        os.replace(building, folder)
    except OSError:
        if folder.is_file() or not (folder / MANIFEST).is_file():
            raise UserError(f"{folder}: exists and is no substitution table: give another folder") from None
        if json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("fingerprint") == json.loads(
            (building / MANIFEST).read_text(encoding="utf-8")
        ).get("fingerprint"):
            return
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".replaced-"))
        os.replace(folder, aside / "old")
        os.replace(building, folder)
        shutil.rmtree(aside, ignore_errors=True)
