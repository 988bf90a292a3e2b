"""What all tasks have in common: a data folder by split and language, training files, rows that were skipped.

Imports no torch, so that ``xsalt-train --help --task NAME`` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xsalt.data.formats import DataFolder, find_data, language_of, read_file
from xsalt.data.rows import Columns, Example, RowLog
from xsalt.errors import UserError


@dataclass(frozen=True)
class NoKeys:
    """The configuration of a task whose class says everything."""


class DataTask:
    """A task on files.

    Attributes:
        labels: the classes, in the order of the model's outputs; none for plain text.

    Args:
        config: an instance of the class's ``Config``.
        data_root: the data folder; None for the embedded data, where a task has any.
        on_error: ``stop`` or ``skip``: what to do at a bad row.
    """

    Config: ClassVar[type] = NoKeys
    labels: tuple[str, ...] = ()

    def __init__(self, config: Any = None, data_root: Path | str | None = None, on_error: str = "stop") -> None:
        self.config = self.Config() if config is None else config
        self.root = Path(data_root) if data_root is not None else self.default_root()
        self.log = RowLog(on_error)
        self._folder: DataFolder | None = None

    @classmethod
    def default_root(cls) -> Path | None:
        """Folder of the embedded data, if the task has any."""
        return None

    @property
    def row_columns(self) -> Columns | None:
        """What to read out of each row; None for plain text."""
        return None

    @property
    def where(self) -> str:
        """The data folder, for messages."""
        return "data.root (not set)" if self.root is None else str(self.root)

    @property
    def skipped(self) -> dict[str, int]:
        """File and reason -> number of rows skipped so far; ``log.messages`` holds the first bad rows."""
        return self.log.skipped

    @property
    def folder(self) -> DataFolder:
        """The data folder, looked at on first use."""
        if self._folder is None:
            if self.root is None:
                raise UserError("data.root is not set, and this task has no embedded data: give data.root=DIR")
            self._folder = find_data(self.root, self.row_columns, self.log)
        return self._folder

    def splits(self) -> list[str]:
        """Splits that the data has, in the order train, dev, test; none without a data folder."""
        return [] if self.root is None else self.folder.splits()

    def languages(self, split: str) -> list[str]:
        """Languages that the data has for a split, sorted; none if there is no such split, or no data folder."""
        return [] if self.root is None else self.folder.languages(split)

    def read(self, split: str, language: str) -> list[Example]:
        """All examples of a split in one language.

        Raises:
            UserError: ``file:line: reason`` at a bad row; what there is, if the split or the language is missing.
        """
        return self.folder.read(split, language)

    def read_files(self, paths: Sequence[Path | str], source: Sequence[str]) -> dict[str, list[Example]]:
        """Examples of training files (``data.train``) in order, by language.

        A row's language is that of its column ``language``, else of the file's name (``train-de.tsv``), else the first
        source language.

        Raises:
            UserError: at a bad row, or if a language is not among ``source``.
        """
        by_language: dict[str, list[Example]] = {}
        for path in map(Path, paths):
            of_file = language_of(path, source[0])
            for of_row, example in read_file(path, self.row_columns, self.log):
                language = of_row or of_file
                if language not in source:
                    told = ",".join([*source, language])
                    raise UserError(
                        f"{path}: is in language {language!r}, which is not a source language: source={told}?"
                    )
                by_language.setdefault(language, []).append(example)
        return by_language
