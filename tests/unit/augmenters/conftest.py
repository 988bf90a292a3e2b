from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import SubstitutionTable, new_table
from xsalt.protocols import Needs

V, EXAMPLES, LENGTH = 100, 40, 8
LANGUAGES = ("en", "de", "fr")


@pytest.fixture
def dataset() -> Dataset:
    """40 examples of 8 tokens, the first and last special; ids 10..39."""
    rng = np.random.default_rng(0)
    grid = rng.integers(10, 40, size=(EXAMPLES, LENGTH)).astype(np.int32)
    special = np.zeros((EXAMPLES, LENGTH), dtype=bool)
    special[:, [0, -1]] = True
    grid[special] = 0
    return Dataset(
        ids=grid.reshape(-1),
        offsets=np.arange(EXAMPLES + 1) * LENGTH,
        type=np.zeros(grid.size, dtype=np.int8),
        special=special.reshape(-1),
        label=np.zeros(EXAMPLES, dtype=np.int64),
        language=np.zeros(EXAMPLES, dtype=np.int16),
        languages=LANGUAGES,
        uids=[str(i) for i in range(EXAMPLES)],
        fingerprint="d",
    )


@pytest.fixture
def table(dataset: Dataset, tmp_path: Path) -> SubstitutionTable:
    """German is id + 30, French id + 60; of probability 0.9 at even places of the corpus, 0.1 at odd ones."""
    with new_table(tmp_path / "table", len(dataset.ids), LANGUAGES[1:], 1, "f") as writer:
        for index, shift in enumerate((30, 60)):
            writer.ids_NLK[:, index, 0] = np.where(dataset.special, -1, dataset.ids + shift)
            writer.probability_NLK[:, index, 0] = np.where(np.arange(len(dataset.ids)) % 2, 0.1, 0.9)
        row = {"without": 0.0, "highest_probability": 0.9}
        writer.stats = {"words": EXAMPLES * (LENGTH - 2), "languages": dict.fromkeys(LANGUAGES[1:], row)}
    return SubstitutionTable.open(tmp_path / "table")


@pytest.fixture
def needs(dataset: Dataset, table: SubstitutionTable, tmp_path: Path) -> Callable[..., Needs]:
    def make(**changes: Any) -> Needs:
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=6))
        given = {"model": model, "tokenizer": None, "train": dataset, "table": table, **changes}
        return Needs(languages=LANGUAGES, source=("en",), cache=tmp_path, **given)

    return make


K = 3
"""Substitutions of a token and language in ``rich``."""


def substitution(source: Any, column: int, rank: int) -> Any:
    """The id that ``rich`` has: language and rank can be read off it."""
    return 1000 * (column + 1) + 100 * rank + source


@pytest.fixture
def rich(dataset: Dataset, tmp_path: Path) -> SubstitutionTable:
    """Synonyms in English, German and French, three of each: of random probabilities, the first above 0.2."""
    rng = np.random.default_rng(1)
    with new_table(tmp_path / "rich", len(dataset.ids), LANGUAGES, K, "f") as writer:
        shape = (len(dataset.ids), K)
        for column in range(len(LANGUAGES)):
            for rank in range(K):
                writer.ids_NLK[:, column, rank] = np.where(dataset.special, -1, substitution(dataset.ids, column, rank))
            writer.probability_NLK[:, column] = -np.sort(-rng.uniform(0, 0.33, shape) - [0.2, 0, 0], axis=1)
    return SubstitutionTable.open(tmp_path / "rich")
