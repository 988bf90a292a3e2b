from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import SubstitutionTable, new_table
from xsalt.distill import lexicon as lexicon_module
from xsalt.distill.lexicon import find_lexicons, judge, precision_by_decile, read_lexicon
from xsalt.errors import UserError
from xsalt.text.tokenizer import Tokenizer


def corpus_of(ids: np.ndarray, special: np.ndarray, languages: tuple[str, ...] = ("en",)) -> Dataset:
    """The tokens as examples of one length, each in one of these languages."""
    examples = len(languages)
    return Dataset(
        ids=ids,
        offsets=np.linspace(0, len(ids), examples + 1).astype(np.int64),
        type=np.zeros(len(ids), dtype=np.int8),
        special=special,
        label=np.zeros(examples, dtype=np.int64),
        language=np.arange(examples, dtype=np.int16),
        languages=languages,
        uids=[str(i) for i in range(examples)],
        fingerprint="d",
    )


def test_p_at_1_counts_every_occurrence_of_one_piece_words_of_four_letters(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def piece(text: str) -> int:
        return tokenizer.pieces().index(text)

    corpus = ["▁house", "▁house", "▁cat", "▁tree", "▁walks", "ing", "▁small", "."]
    best = ["▁maison", "▁chat", "▁chat", "▁tree", "▁marche", "ment", "▁petit", "▁le"]
    with new_table(tmp_path / "t", len(corpus), ["fr"], 1, "f") as writer:
        writer.ids_NLK[:, 0, 0] = [piece(b) for b in best]
        writer.probability_NLK[:] = 0.01  # no threshold
    table = SubstitutionTable.open(tmp_path / "t")
    lexicon = {
        "house": frozenset({"maison"}),  # right once, wrong once
        "cat": frozenset({"chat"}),  # too short
        "tree": frozenset({"arbre"}),  # identity is wrong here
        "walks": frozenset({"marche"}),  # goes on with another piece
        "small": frozenset({"petit"}),
    }
    ids = np.array([piece(c) for c in corpus], dtype=np.int32)
    special = np.zeros(len(corpus), dtype=bool)

    def right() -> tuple[int, int]:
        judged = judge(table, corpus_of(ids, special), tokenizer, lexicon, "en", "fr")
        return judged.right, judged.counted

    assert right() == (2, 4)
    lexicon["tree"] = frozenset({"arbre", "tree"})
    assert right() == (3, 4)
    special[:] = True
    assert right() == (0, 0)


def test_precision_is_told_for_each_tenth_of_the_substitutions_by_probability(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, maison, chat = (tokenizer.pieces().index(piece) for piece in ("▁house", "▁maison", "▁chat"))
    probability = np.random.default_rng(0).uniform(size=1000).astype(np.float16)
    right = np.random.default_rng(1).uniform(size=1000) < probability.astype(float)
    best = np.where(right, maison, chat)
    best[:100], best[100:150] = house, -1  # itself, and none: no substitution
    with new_table(tmp_path / "t", 1000, ["fr"], 1, "f") as writer:
        writer.ids_NLK[:, 0, 0] = best
        writer.probability_NLK[:, 0, 0] = probability
    table = SubstitutionTable.open(tmp_path / "t")
    monkeypatch.setattr(lexicon_module, "CHUNK", 64)
    corpus = np.full(1000, house, dtype=np.int32)
    words = {"house": frozenset({"maison"})}
    nothing_special = np.zeros(1000, dtype=bool)
    judged = judge(table, corpus_of(corpus, nothing_special), tokenizer, words, "en", "fr")
    assert (judged.counted, judged.right) == (1000, int(right[150:].sum()))
    rows = precision_by_decile(judged.switched_P, judged.right_P)
    order = np.argsort(probability[150:], kind="stable")
    for row, tenth in zip(rows, np.array_split(order, 10), strict=True):
        assert abs(row["n"] - 85) <= 2
        assert row["from"] == pytest.approx(float(probability[150:][tenth[0]]), abs=2e-3)
        assert row["precision"] == pytest.approx(right[150:][tenth].mean(), abs=0.03)
    assert precision_by_decile(judged.switched_P * 0, judged.right_P * 0) == []
    several = corpus_of(corpus, nothing_special, ("de", "en", "sw"))
    judged = judge(table, several, tokenizer, words, "en", "fr")
    assert (judged.counted, judged.right) == (333, int((right & (best == maison))[333:666].sum()))


def test_equal_probabilities_are_not_parted() -> None:
    switched = np.zeros(int(np.float16(1).view(np.uint16)) + 1, dtype=np.int64)
    switched[np.float16(0.5).view(np.uint16)], switched[-1] = 30, 70
    rows = precision_by_decile(switched, switched // 10)
    assert rows == [{"from": 0.5, "n": 30, "precision": 0.1}, {"from": 1.0, "n": 70, "precision": 0.1}]


def test_a_lexicon_has_tabs_or_spaces_and_any_case(tmp_path: Path) -> None:
    path = tmp_path / "en-fr.txt"
    path.write_text("House\tMaison\nhouse\tdomicile\n\nthe le\n", encoding="utf-8")
    assert read_lexicon(path) == {"house": frozenset({"maison", "domicile"}), "the": frozenset({"le"})}
    path.write_text("house\tmaison\nalone\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"en-fr\.txt:2: 'alone' holds no two words"):
        read_lexicon(path)


def test_lexicons_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("en-fr.txt", "en-de.txt"):
        (tmp_path / name).write_text("a\tb\n")
    assert set(find_lexicons(tmp_path, "en", ("fr", "it"))) == {"fr"}
    assert find_lexicons(tmp_path / "en-fr.txt", "en", ("fr", "it")) == {"fr": tmp_path / "en-fr.txt"}
    for path, languages in ((tmp_path / "no", ("fr",)), (tmp_path, ("sw",)), (tmp_path / "en-de.txt", ("fr", "it"))):
        with pytest.raises(UserError, match="lexicon="):
            find_lexicons(path, "en", languages)
