from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from sacrebleu.metrics import CHRF

from tests.unit.distill.tiny import ENGLISH, FRENCH, PIECES
from xsalt.data.dataset import Dataset, Example, tokenise
from xsalt.data.substitutions import SubstitutionTable, new_table
from xsalt.distill.parallel import ROWS, are_parallel, chrf_of_switching
from xsalt.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("_decoder")
WORDS = dict(zip(ENGLISH, FRENCH, strict=False))


@pytest.fixture
def _decoder(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes words as texts have them, which the other tests here don't need."""
    decoder = tokenizers.decoders.Metaspace()
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoder.decode([tokenizer.piece(int(id_)) for id_ in ids]))


def translated(text: str) -> str:
    return " ".join(WORDS[word] for word in text.split())


@pytest.fixture
def rows() -> list[Example]:
    rng = np.random.default_rng(0)
    texts = [[" ".join(rng.choice(ENGLISH, size=n)) for n in (5, 3)] for _ in range(40)]
    return [Example(first, second, i % 3, str(i)) for i, (first, second) in enumerate(texts)]


@pytest.fixture
def parallel(rows: list[Example]) -> list[Example]:
    return [Example(translated(row.first), translated(row.second or ""), row.label, row.uid) for row in rows]


@pytest.fixture
def english(rows: list[Example], tokenizer: Tokenizer, tmp_path: Path) -> Dataset:
    return tokenise({"en": rows}, tokenizer, 64, ("en", "fr"), tmp_path)


@pytest.fixture
def table(english: Dataset, tmp_path: Path) -> SubstitutionTable:
    """The right French word, of probability 0.8 for the first four English words and 0.4 for the others."""
    with new_table(tmp_path / "table", len(english.ids), ("fr",), 1, "f") as writer:
        for number, (word, translation) in enumerate(WORDS.items()):
            at = english.ids == PIECES.index(f"▁{word}")
            writer.ids_NLK[at, 0, 0] = PIECES.index(f"▁{translation}")
            writer.probability_NLK[at, 0, 0] = 0.8 if number < 4 else 0.4
    return SubstitutionTable.open(tmp_path / "table")


def test_chrf_is_sacrebleus_of_switched_and_unswitched_sentences(
    rows: list[Example], parallel: list[Example], english: Dataset, table: SubstitutionTable, tokenizer: Tokenizer
) -> None:
    def measured(threshold: float) -> dict[str, float]:
        return chrf_of_switching(table, english, tokenizer, {"fr": parallel}, threshold, 1)["fr"]

    def texts(of: list[Example]) -> list[str]:
        return [text for row in of for text in (row.first, row.second or "")]

    source = CHRF().corpus_score(texts(rows), [texts(parallel)]).score
    assert measured(0.3) == {"chrf_switched": 100.0, "chrf_source": round(source, 2)}
    sure = dict(list(WORDS.items())[:4])
    half = [" ".join(sure.get(word, word) for word in text.split()) for text in texts(rows)]
    expected = CHRF().corpus_score(half, [texts(parallel)]).score
    assert measured(0.5) == {"chrf_switched": round(expected, 2), "chrf_source": round(source, 2)}
    assert source < expected < 100
    assert measured(0.9)["chrf_switched"] == measured(0.9)["chrf_source"]


def test_a_large_set_is_measured_on_a_fixed_sample(
    parallel: list[Example], english: Dataset, table: SubstitutionTable, tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert ROWS == 500
    arguments = (table, english, tokenizer, {"fr": parallel}, 0.5)
    whole = chrf_of_switching(*arguments, 1)
    monkeypatch.setattr("xsalt.distill.parallel.ROWS", 10)
    assert chrf_of_switching(*arguments, 1) == chrf_of_switching(*arguments, 1) != whole
    assert chrf_of_switching(*arguments, 1) != chrf_of_switching(*arguments, 2)


def test_single_sentences_are_measured_and_rows_with_an_empty_text_left_out(
    rows: list[Example], parallel: list[Example], table: SubstitutionTable, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    single = [Example(row.first, None, row.label, row.uid) for row in rows]
    dataset = tokenise({"en": single}, tokenizer, 64, ("en", "fr"), tmp_path)
    others = [Example(row.first, None, row.label, row.uid) for row in parallel]
    assert chrf_of_switching(table, dataset, tokenizer, {"fr": others}, 0.3, 1)["fr"]["chrf_source"] > 0
    empty = [Example(row.first, "", row.label, row.uid) for row in rows]
    dataset = tokenise({"en": empty}, tokenizer, 64, ("en", "fr"), tmp_path)
    assert chrf_of_switching(table, dataset, tokenizer, {"fr": parallel}, 0.3, 1) == {}


def test_rows_are_parallel_if_as_many_have_the_same_labels(rows: list[Example], parallel: list[Example]) -> None:
    assert are_parallel(rows, parallel)
    assert not are_parallel(rows, parallel[:-1])
    assert not are_parallel(rows, parallel[::-1])
    assert not are_parallel([], [])
