"""Substitution tables: for every token of a corpus and every target language, the substitutions that the model
predicts.

A folder with ``ids.npy`` (int32) and ``probability.npy`` (float16), both of shape (N tokens, L languages, k), best
first and -1 where there is none; ``manifest.json`` (fingerprint, languages, sizes, SHA-256 of the files) and
``stats.json``, both with the SHA-256 of their own content. Arrays are memory-mapped: a table may be larger than memory.
An id equal to the source token's means "leave it as it is". Languages that are source languages come last: their
columns hold synonyms, never the token itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xsalt.data.arrays import read_array
from xsalt.errors import UserError
from xsalt.files import read_bytes

Ids = npt.NDArray[np.int32]
Probabilities = npt.NDArray[np.float16]
FORMAT = 2
IDS, PROBABILITY, MANIFEST, STATS = "ids.npy", "probability.npy", "manifest.json", "stats.json"
_REBUILD = "delete the folder, and it is built anew"
_CHUNK = 1 << 18
"""Tokens read at a time."""


def table_fingerprint(parts: Mapping[str, object]) -> str:
    """SHA-256 over what a table is a function of (model, tokenizer, data, languages, vocabularies, configuration)."""
    return hashlib.sha256(json.dumps([FORMAT, dict(parts)], sort_keys=True).encode()).hexdigest()


class SubstitutionTable:
    """A table opened for reading.

    Attributes:
        languages: target languages, in the order of the arrays' second axis; then those of ``source``.
        source: source languages among them, whose columns hold synonyms.
        ids_NLK, probability_NLK: memory-mapped arrays.
        fingerprint: what the table is a function of.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        languages: tuple[str, ...],
        source: tuple[str, ...],
        ids: Ids,
        probability: Probabilities,
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.languages = languages
        self.source = source
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
        if not (folder / MANIFEST).exists():
            raise UserError(f"{folder}: no substitution table there (no {MANIFEST}): make one with xsalt-augment")
        manifest = _read_json(folder / MANIFEST)
        try:
            found = str(manifest["fingerprint"])
            files = {name: dict(manifest["files"][name]) for name in (IDS, PROBABILITY)}
            languages, source = tuple(map(str, manifest["languages"])), tuple(map(str, manifest.get("source", ())))
            if manifest["format"] != FORMAT:
                raise UserError(
                    f"{folder}: a substitution table of format {manifest['format']}, not {FORMAT}: {_REBUILD}"
                )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / MANIFEST}: damaged ({type(error).__name__}): {_REBUILD}") from error
        if fingerprint is not None and found != fingerprint:
            raise UserError(
                f"{folder}: made for another model, tokenizer, data set or configuration "
                f"({found[:8]}, not {fingerprint[:8]}): "
                "make one for this run with xsalt-augment"
            )
        for name in (IDS, PROBABILITY):
            _check_file(folder / name, files[name])
        _read_json(folder / STATS)
        ids = read_array(folder / IDS, np.int32, 3)
        probability = read_array(folder / PROBABILITY, np.float16, 3)
        if ids.shape != probability.shape or ids.shape[1] != len(languages):
            raise UserError(f"{folder}: damaged (shapes {ids.shape} and {probability.shape}): {_REBUILD}")
        return cls(folder, found, languages, source, ids, probability)

    def __len__(self) -> int:
        return len(self.ids_NLK)

    def lookup(self, corpus_T: npt.NDArray[np.int64], language_T: npt.NDArray[np.int64]) -> tuple[Ids, Probabilities]:
        """Ids and probabilities of shape (T, k) for tokens of the corpus, each in its own language (an index)."""
        return self.ids_NLK[corpus_T, language_T], self.probability_NLK[corpus_T, language_T]

    def vocabulary_ids(
        self, own_N: Ids, threshold: float | npt.NDArray[np.float32], k: int | None = None
    ) -> npt.NDArray[np.int64]:
        """Sorted ids that some token may become.

        Args:
            own_N: the corpus's ids; a substitution equal to its token's changes nothing and doesn't count.
            threshold: least probability that is accepted, one for all languages or of shape (L,).
            k: how many of a token's substitutions count, best first; None: all.
        """
        seen = np.zeros(1, dtype=np.bool_)
        for ids_NLK, accepted_NLK in self._accepted(own_N, threshold, k):
            taken = ids_NLK[accepted_NLK]
            if len(taken) and int(taken.max()) >= len(seen):
                seen = np.concatenate([seen, np.zeros(int(taken.max()) + 1 - len(seen), dtype=np.bool_)])
            seen[taken] = True
        return np.flatnonzero(seen)

    def coverage(self, own_N: Ids, threshold: float, k: int | None = None) -> npt.NDArray[np.float64]:
        """Share of all tokens that can become another, by language, of shape (L,). Arguments as of
        ``vocabulary_ids``."""
        found_L = np.zeros(len(self.languages))
        for _, accepted_NLK in self._accepted(own_N, threshold, k):
            found_L += accepted_NLK.any(2).sum(0)
        return found_L / max(1, len(self))

    def _accepted(
        self, own_N: Ids, threshold: float | npt.NDArray[np.float32], k: int | None
    ) -> Iterator[tuple[Ids, npt.NDArray[np.bool_]]]:
        """Ids, and which of them a token is switched to, some thousand tokens at a time."""
        threshold_L1 = np.asarray(threshold, dtype=np.float32).reshape(-1, 1)
        for start in range(0, len(self), _CHUNK):
            part = (slice(start, start + _CHUNK), slice(None), slice(k))
            ids_NLK, own_N11 = self.ids_NLK[part], own_N[part[0], None, None]
            sure_NLK = self.probability_NLK[part].astype(np.float32) >= threshold_L1
            yield ids_NLK, (ids_NLK >= 0) & (ids_NLK != own_N11) & sure_NLK

    def why_nothing(self) -> str:
        """The likely cause, where no word has an accepted substitution: from ``stats.json``."""
        stats = self.stats()
        rows = stats["languages"].values()
        if stats["words"] == 0:
            return "the corpus has no words, only digits and punctuation: look at the file"
        if all(row["without"] == 1 for row in rows):
            return "no word has a candidate: vocabularies lack pieces of its kind, see xsalt-vocab"
        highest = max(row["highest_probability"] for row in rows)
        if highest == 0:
            return "the best one of each word is the word itself: vocabularies share its pieces, raise vocabulary.ratio"
        return (
            f"the highest is {highest:.4f}: lower the threshold, or score with a model (or a layer, distill.layer) "
            "that knows these languages"
        )

    def copy_to(self, folder: Path) -> SubstitutionTable:
        """Copies the table, all or nothing, in place of another table at most. Raises ``UserError`` for any other
        folder."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".copy-"))
        try:
            for name in (IDS, PROBABILITY, STATS, MANIFEST):
                shutil.copyfile(self.folder / name, building / name)
            building.chmod(0o755)
            _put_in_place(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return SubstitutionTable.open(folder, self.fingerprint)

    def stats(self) -> dict[str, Any]:
        """The content of ``stats.json``."""
        return _read_json(self.folder / STATS)

    def write_stats(self, stats: Mapping[str, Any]) -> None:
        """Puts other statistics in place of ``stats.json``, all or nothing. Never in a cache: others read it there."""
        partial = self.folder / f".{STATS}-{os.getpid()}"
        _write_sealed(partial, stats)
        os.replace(partial, self.folder / STATS)


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
    """A table under construction: the files hold "no substitution" until they are written to, slice by slice.

    Nothing is kept in memory: each access to an array maps its file anew.
    """

    def __init__(
        self, folder: Path, tokens: int, languages: Sequence[str], k: int, fingerprint: str, source: Sequence[str]
    ) -> None:
        self.folder = folder
        self.languages = tuple(languages)
        self.source = tuple(source)
        self.fingerprint = fingerprint
        self.shape = (tokens, len(self.languages), k)
        self.stats: dict[str, Any] = {}
        for name, dtype in ((IDS, np.int32), (PROBABILITY, np.float16)):
            np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=self.shape).flush()
            with (folder / name).open("r+b") as file:  # on a full disk this is an error; a write to a map is a crash
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        for start in range(0, tokens, _CHUNK):
            self.ids_NLK[start : start + _CHUNK] = -1

    @property
    def ids_NLK(self) -> Ids:
        """The ids, mapped for writing."""
        return np.lib.format.open_memmap(self.folder / IDS, mode="r+")

    @property
    def probability_NLK(self) -> Probabilities:
        """The probabilities, mapped for writing."""
        return np.lib.format.open_memmap(self.folder / PROBABILITY, mode="r+")

    def finish(self) -> None:
        files = {}
        for name in (IDS, PROBABILITY):
            path = self.folder / name
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[name] = {"size": path.stat().st_size, "sha256": file_hash(path)}
        manifest = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "languages": list(self.languages),
            "source": list(self.source),
            "tokens": self.shape[0],
            "k": self.shape[2],
            "files": files,
        }
        _write_sealed(self.folder / STATS, self.stats)
        _write_sealed(self.folder / MANIFEST, manifest)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object with the SHA-256 of its own content, flushed to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(_sealed(content))
        file.flush()
        os.fsync(file.fileno())


def _read_json(path: Path) -> dict[str, Any]:
    """What was sealed. Raises ``UserError`` if it isn't there or a byte of it was changed."""
    try:
        raw = read_bytes(path)
    except UserError as error:
        raise UserError(f"{error}: missing from the substitution table, or damaged: {_REBUILD}") from error
    try:
        text = raw.decode("utf-8")
        content: dict[str, Any] = json.loads(text)
        content.pop("sha256")
        whole = _sealed(content) == text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}): {_REBUILD}") from error
    if not whole:
        raise UserError(f"{path}: damaged: its content was altered (SHA-256 differs): {_REBUILD}")
    return content


def _sealed(content: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in content.items() if key != "sha256"}
    seal = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    return json.dumps({**plain, "sha256": seal}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@contextmanager
def new_table(
    folder: Path,
    tokens: int,
    languages: Iterable[str],
    k: int,
    fingerprint: str,
    source: Sequence[str] = (),
    scratch: Path | None = None,
) -> Iterator[TableWriter]:
    """Gives a table to fill; when the block ends without an error it takes its place at ``folder``, all or nothing.

    Another process may have put the same table there meanwhile: then this one is dropped.

    Args:
        scratch: where it lies till then, on the file system of ``folder``; None: beside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=scratch or folder.parent, prefix=f".{folder.name[:16]}-"))
    try:
        writer = TableWriter(building, tokens, tuple(languages), k, fingerprint, source)
        yield writer
        writer.finish()
        building.chmod(0o755)
        _put_in_place(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def discard_damaged(folder: Path, fingerprint: str) -> UserError | None:
    """Moves a table away that can't be opened as this one, and gives the reason; None if it can be, or there is none.

    Who has it open goes on reading it.
    """
    if not folder.exists():
        return None
    try:
        SubstitutionTable.open(folder, fingerprint)
    except UserError as error:
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".damaged-"))
        with suppress(FileNotFoundError):  # another process may just have done so
            os.replace(folder, aside / "old")
        shutil.rmtree(aside, ignore_errors=True)
        return error
    return None


def _put_in_place(building: Path, folder: Path) -> None:
    try:
        os.replace(building, folder)
    except OSError:
        if folder.is_file() or not (folder / MANIFEST).is_file():
            raise UserError(f"{folder}: exists and is no substitution table: give another folder") from None
        if fingerprint_of(folder) == fingerprint_of(building):
            return
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".replaced-"))
        os.replace(folder, aside / "old")
        os.replace(building, folder)
        shutil.rmtree(aside, ignore_errors=True)


def fingerprint_of(folder: Path) -> str | None:
    """What the table there is a function of; None if there is no table or its manifest is damaged."""
    try:
        return str(_read_json(folder / MANIFEST).get("fingerprint"))
    except UserError:
        return None
