"""Data folders: which files are there, for which split and language, recognised by their names and content.

A new layout is one more line in ``_PATTERNS``; a new kind of file one more reader in ``rows.py``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xsalt.data.rows import LANGUAGE, Columns, Example, RowLog, read_rows, read_text
from xsalt.errors import UserError
from xsalt.files import is_folder

_LL = rf"(?P<language>{LANGUAGE})"
# Layout -> what the path of a file looks like, relative to the folder; without a language its rows name theirs.
_PATTERNS = {
    "files by split and language": rf"(?P<split>train|dev|test)-{_LL}\.(?:tsv|jsonl)",
    "XNLI-1.0": r"(?:.*/)?xnli\.(?P<split>dev|test)\.tsv",
    "XNLI-MT-1.0": rf"(?:.*/)?multinli\.(?P<split>train)\.{_LL}\.tsv",
    "PAWS-X": rf"(?:.*/)?{_LL}/(?P<split>train|translated_train|dev_2k|test_2k)\.tsv",
    "Hugging Face parquet": rf"(?:.*/)?{_LL}/(?P<split>train|validation|test)-[^/]*\.parquet",
}
_TEXT_PATTERN = rf"(?:(?P<split>train|dev|test)-)?{_LL}\.txt"
_SPLITS = {"translated_train": "train", "dev_2k": "dev", "test_2k": "test", "validation": "dev"}
_SHARDED = "Hugging Face parquet"
ACCEPTED = (
    "{train,dev,test}-LL.tsv or .jsonl; XNLI-1.0 (xnli.dev.tsv) with XNLI-MT-1.0 (multinli.train.LL.tsv); "
    "PAWS-X (LL/dev_2k.tsv); Hugging Face parquet (LL/train-*.parquet)"
)
ACCEPTED_TEXT = "{train,dev}-LL.txt or LL.txt"
_DEEPEST, _MOST = 4, 50_000


@dataclass
class DataFolder:
    """Files of a folder by split and language.

    Attributes:
        files: split -> language -> files, in the order in which they are read.
        mixed: split -> files whose rows name their language.
    """

    root: Path
    columns: Columns | None
    log: RowLog
    files: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    mixed: dict[str, list[Path]] = field(default_factory=dict)
    _read: dict[str, dict[str, list[Example]]] = field(default_factory=dict)

    def splits(self) -> list[str]:
        """Splits that are there, in the order train, dev, test."""
        return [split for split in ("train", "dev", "test") if split in self.files or split in self.mixed]

    def languages(self, split: str) -> list[str]:
        """Languages of a split, sorted; none if there is no such split."""
        return sorted({*self.files.get(split, {}), *self._read_mixed(split)})

    def read(self, split: str, language: str) -> list[Example]:
        """All examples. Raises ``UserError`` naming what there is if the split or the language is missing."""
        if split not in self.splits():
            raise UserError(f"{self.root}: no {split} split there; there are {', '.join(self.splits())}")
        mixed = self._read_mixed(split)
        if language in mixed:
            return mixed[language]
        if language not in self.files.get(split, {}):
            there = ", ".join(self.languages(split))
            raise UserError(f"{self.root}: no {split} data in language {language!r}; there are {there}")
        paths = self.files[split][language]
        return [example for path in paths for _, example in read_file(path, self.columns, self.log)]

    def _read_mixed(self, split: str) -> dict[str, list[Example]]:
        if split not in self._read:
            by_language: dict[str, list[Example]] = {}
            for path in self.mixed.get(split, []):
                for language, example in read_file(path, self.columns, self.log):
                    if language is None:
                        raise UserError(f"{path}: its header lacks the column language")
                    by_language.setdefault(language, []).append(example)
                for language in by_language.keys() & self.files.get(split, {}).keys():
                    raise UserError(_twice(self.root, split, language, [path, *self.files[split][language]]))
            self._read[split] = by_language
        return self._read[split]


def find_data(root: Path, columns: Columns | None, log: RowLog) -> DataFolder:
    """Looks at what is in a folder; reads nothing yet.

    Args:
        columns: what to read out of rows; None for a folder of plain text.

    Raises:
        UserError: if there is no such folder, no data in it, or two files for one split and language.
    """
    _check_folder(root)
    folder = DataFolder(root, columns, log)
    patterns = {"text": _TEXT_PATTERN} if columns is None else _PATTERNS
    for relative in _walk(root):
        for layout, pattern in patterns.items():
            match = re.fullmatch(pattern, relative)
            if match is None:
                continue
            split = match["split"] or "train"
            split = _SPLITS.get(split, split)
            if "language" not in match.groupdict():
                paths = folder.mixed.setdefault(split, [])
                paths.append(root / relative)
                if len(paths) > 1:
                    raise UserError(_twice(root, split, None, paths))
                break
            paths = folder.files.setdefault(split, {}).setdefault(match["language"], [])
            paths.append(root / relative)
            if len(paths) > 1 and layout != _SHARDED:
                raise UserError(_twice(root, split, match["language"], paths))
            break
    if not folder.splits():
        held = sorted(p.name for p in root.iterdir())
        listing = ", ".join(held[:8]) + (" ..." if len(held) > 8 else "") if held else "nothing"
        raise UserError(
            f"{root}: no data there (it holds {listing}); accepted: {ACCEPTED if columns else ACCEPTED_TEXT}"
        )
    return folder


def _twice(root: Path, split: str, language: str | None, paths: Sequence[Path]) -> str:
    of_language = f" in language {language!r}" if language else ""
    names = " and ".join(str(path.relative_to(root)) for path in paths)
    return f"{root}: more than one {split} set{of_language}: {names}; keep one"


def _check_folder(root: Path) -> None:
    if is_folder(root):
        return
    if root.exists():
        raise UserError(f"{root}: is a file, data.root names a folder; give a training file as data.train=[FILE]")
    beside = sorted(p.name for p in root.parent.iterdir()) if root.parent.is_dir() else []
    near = difflib.get_close_matches(root.name, beside, n=3)
    raise UserError(f"{root}: no such folder" + (f": did you mean {', '.join(near)}?" if near else ""))


def _walk(root: Path) -> Iterator[str]:
    """Relative paths, sorted, hidden folders and what lies more than four levels down left out.

    Folders are among them: one with the name of a data file is an error when it is read, not a file that is missing.
    """
    entries, known = 0, set[tuple[int, int]]()
    for folder, below, names in os.walk(root, followlinks=True, onerror=_stop):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in known:  # links in a circle, or two links to one folder
            below[:] = []
            continue
        known.add((status.st_dev, status.st_ino))
        relative = Path(folder).relative_to(root)
        entries += len(names) + len(below)
        if entries > _MOST:
            raise UserError(f"{root}: more than {_MOST:,} files there: give the folder of the data itself")
        below[:] = sorted(n for n in below if not n.startswith((".", "__"))) if len(relative.parts) < _DEEPEST else []
        for name in sorted([*names, *below]):
            yield (relative / name).as_posix()


def _stop(error: OSError) -> None:
    raise UserError(f"{error.filename}: can't be read: {error.strerror}") from error


def read_file(path: Path, columns: Columns | None, log: RowLog) -> list[tuple[str | None, Example]]:
    """Examples of one file, each with the language that its row names, if any; passages of text without ``columns``."""
    return read_rows(path, columns, log) if columns else [(None, passage) for passage in read_text(path, log)]


def language_of(path: Path, default: str) -> str:
    """The language that a file's name ends in (``train-de.tsv``, ``news.sw.txt``, ``sw.txt``), else the default."""
    match = re.fullmatch(rf"(?:train|dev|test)-{_LL}", path.stem) or re.fullmatch(
        r"(?:.*[-.])?(?P<language>[a-z]{2})", path.stem
    )
    return match["language"] if match else default
