"""Labelled pairs and single sentences: the base of every classification task, and the task configured by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xsalt.data.rows import Columns
from xsalt.errors import UserError
from xsalt.fields import key
from xsalt.tasks.base import DataTask


class ClassificationTask(DataTask):
    """Texts and a label. A subclass need only set ``labels`` and ``columns``.

    Attributes:
        labels: the classes, in the order of the model's outputs.
        columns: names of one or two text columns, then of the label column.
        spellings: other spellings -> label.
        no_label: labels of rows that have none: skipped and counted. no_text: likewise for texts.
    """

    columns: tuple[str, ...] = ()
    spellings: Mapping[str, str] = {"contradictory": "contradiction"}
    no_label: frozenset[str] = frozenset({"-"})
    no_text: frozenset[str] = frozenset()

    def __init__(self, config: Any = None, data_root: Path | str | None = None, on_error: str = "stop") -> None:
        super().__init__(config, data_root, on_error)
        _check_class(type(self).__name__, self.labels, self.columns)

    @property
    def row_columns(self) -> Columns:
        """What to read out of each row."""
        labels = tuple(self.labels)
        texts, label = tuple(self.columns[:-1]), self.columns[-1]
        return Columns(texts, label, labels, self.spellings, self.no_label, self.no_text)


def _check_class(name: str, labels: Sequence[str], columns: Sequence[str]) -> None:
    if len(columns) not in (2, 3) or len(set(columns)) != len(columns):
        raise UserError(
            f"task {name}: columns={list(columns)}: one or two text columns and the label column last are needed"
        )
    if len(labels) < 2 or len({label.strip().lower() for label in labels}) != len(labels):
        raise UserError(f"task {name}: labels={list(labels)}: at least two different labels are needed")


@dataclass(frozen=True)
class PairsConfig:
    """Keys of the task ``pairs``."""

    columns: list[str] = key(
        ["premise", "hypothesis", "label"], "one or two text columns by header name, then the label column"
    )
    labels: list[str] = key(["entailment", "neutral", "contradiction"], "the classes, spelt as in the data")


class Pairs(ClassificationTask):
    """Any labelled pairs or single sentences: columns and labels from the configuration."""

    Config: ClassVar[type] = PairsConfig

    def __init__(
        self, config: PairsConfig | None = None, data_root: Path | str | None = None, on_error: str = "stop"
    ) -> None:
        config = config or PairsConfig()
        self.labels, self.columns = tuple(map(str, config.labels)), tuple(config.columns)
        super().__init__(config, data_root, on_error)
