from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xsalt.config_distill import DistillConfig
from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import SubstitutionTable
from xsalt.distill import table as table_module
from xsalt.distill.report import warn_if_nothing
from xsalt.distill.scoring import top_of
from xsalt.distill.table import ensure_table
from xsalt.distill.tally import count
from xsalt.errors import UserError
from xsalt.text.language_vocab import LanguageVocabularies, letters_V
from xsalt.text.tokenizer import Tokenizer

Make = Callable[..., Any]


@pytest.fixture
def build(
    tokenizer: Tokenizer, dataset: Dataset, vocabularies: LanguageVocabularies, tmp_path: Path
) -> Callable[..., SubstitutionTable]:
    def call(
        model: Any,
        has_head: bool = False,
        fingerprint: str | None = "m",
        languages: Any = ("en", "fr", "it"),
        cache: Path | None = None,
        empty: Any = (),
        **config: Any,
    ) -> Any:
        none = {language: np.zeros(0, dtype=np.int32) for language in empty}
        given = replace(vocabularies, ids={**vocabularies.ids, **none})
        make = model if callable(model) and not isinstance(model, torch.nn.Module) else lambda: model
        settings = DistillConfig(**config)
        return ensure_table(
            make,
            fingerprint,
            has_head,
            tokenizer,
            dataset,
            languages,
            ("en",),
            given,
            settings,
            cache or tmp_path,
        )

    return call


def expected(
    model: Any, tokenizer: Tokenizer, dataset: Dataset, ids_V: np.ndarray, config: DistillConfig, mlm: bool
) -> Any:
    """probability_TV by the obvious way: a softmax over the candidates that start a word as the token does."""
    model.eval()
    probability = np.zeros((len(dataset.ids), len(ids_V)))
    with torch.no_grad():
        for example in range(len(dataset)):
            batch = dataset.batch(np.array([example]))
            hidden = model.encode(model.embed(batch), batch.layout, keep=range(4))
            if mlm:
                logits = model.mlm_logits(hidden[3])[:, ids_V]
            else:
                rows = model.embeddings.word.rows(torch.from_numpy(ids_V.astype(np.int64)))
                logits = F.normalize(hidden[config.layer]) @ F.normalize(rows).T / config.temperature
            initial_T = torch.from_numpy(tokenizer.word_initial_V[batch.ids_T.numpy()])
            other = initial_T[:, None] != torch.from_numpy(tokenizer.word_initial_V[ids_V])[None]
            span = slice(dataset.offsets[example], dataset.offsets[example + 1])
            probability[span] = logits.masked_fill(other, -torch.inf).softmax(1).numpy()
    return np.nan_to_num(probability)


@pytest.mark.parametrize(("mlm", "shortlist"), [(False, 0), (False, 100), (True, 0)])
def test_scores_equal_a_softmax_over_the_languages_vocabulary_alone(
    mlm: bool,
    shortlist: int,
    build: Any,
    model: Make,
    tokenizer: Tokenizer,
    dataset: Dataset,
    vocabularies: LanguageVocabularies,
) -> None:
    config = DistillConfig(shortlist=shortlist, layer=2, temperature=0.1)
    made = model(mlm_head=mlm)
    table = build(made, has_head=mlm, shortlist=shortlist, layer=2, temperature=0.1)
    assert table.languages == ("fr", "it")
    pieces = np.array(tokenizer.pieces())[dataset.ids]
    for index, language in enumerate(table.languages):
        ids_V = vocabularies.ids[language]
        probability = expected(made, tokenizer, dataset, ids_V, config, mlm)
        scored = np.array([any(c.isalpha() for c in p) and p != "<unk>" for p in pieces])
        scored &= ~dataset.special & (probability.max(1) > 0)
        assert scored.sum() > 300
        np.testing.assert_array_equal(table.ids_NLK[scored, index, 0], ids_V[probability.argmax(1)][scored])
        np.testing.assert_allclose(table.probability_NLK[scored, index, 0], probability.max(1)[scored], atol=2e-3)
        assert (table.ids_NLK[~scored, index, 0] == -1).all()


def test_a_continuation_is_replaced_by_continuations_only(
    build: Any, model: Make, tokenizer: Tokenizer, dataset: Dataset
) -> None:
    table = build(model())
    continuation = np.array(tokenizer.pieces())[dataset.ids] == "ing"
    assert continuation.sum() == 70
    assert {tokenizer.piece(int(i)) for i in table.ids_NLK[continuation, 0, 0]} == {"ment"}
    assert (table.ids_NLK[continuation, 1, 0] == -1).all()  # the other language has none


@pytest.mark.parametrize("method", ["lens", "mlm"])
def test_the_best_k_come_first_to_last(build: Any, model: Make, method: str) -> None:
    made = model(mlm_head=method == "mlm")
    for shortlist in (0, 32) if method == "lens" else (0,):
        keys = {"has_head": method == "mlm", "shortlist": shortlist, "temperature": 0.1}
        table = build(made, k=3, **keys)
        word = table.ids_NLK[:, 0, 2] >= 0
        probability = table.probability_NLK[word, 0].astype(float)
        assert (np.diff(probability, axis=1) <= 0).all()
        assert all(len(set(row)) == 3 for row in table.ids_NLK[word, 0].tolist())
        np.testing.assert_array_equal(build(made, k=1, **keys).ids_NLK[:, :, 0], table.ids_NLK[:, :, 0])


def test_a_table_is_built_once_and_reused(build: Any, model: Make) -> None:
    first = build(model())

    def never() -> Any:
        raise AssertionError("the model was made")

    assert build(never).fingerprint == first.fingerprint


def test_other_weights_languages_or_settings_are_another_table(build: Any, model: Make) -> None:
    tables = [
        build(model()),
        build(model(), fingerprint="other"),
        build(model(), fingerprint=None),
        build(model(seed=2), fingerprint=None),
        build(model(), languages=("fr",)),
        build(model(), layer=0),
        build(model(), k=2),
    ]
    assert len({table.fingerprint for table in tables}) == len(tables)
    assert build(model(), fingerprint=None).fingerprint == tables[2].fingerprint


def test_the_same_table_comes_out_bit_by_bit(build: Any, model: Make, tmp_path: Path) -> None:
    a, b = build(model(), cache=tmp_path / "a"), build(model(), cache=tmp_path / "b")
    for name in ("ids.npy", "probability.npy", "manifest.json"):
        assert (a.folder / name).read_bytes() == (b.folder / name).read_bytes()


def test_statistics_tell_size_coverage_and_mean_probability(build: Any, model: Make, dataset: Dataset) -> None:
    stats = build(model(), temperature=0.05).stats()
    assert stats["tokens"] == len(dataset.ids)
    assert stats["threshold"] == 0.3
    assert stats["languages"]["fr"]["vocabulary"] == 10
    assert 0 < stats["languages"]["fr"]["coverage"] <= 1
    assert 0 < stats["languages"]["fr"]["mean_probability"] <= 1
    assert stats["tokens_per_s"] > 0


def test_the_model_is_left_as_it_was(build: Any, model: Make) -> None:
    made = model().train()
    build(made)
    assert made.training


def test_bad_requests_are_one_error_line(build: Any, model: Make) -> None:
    with pytest.raises(UserError, match="no masked-language-model head"):
        build(model(), method="mlm")
    with pytest.raises(UserError, match="no target language has a vocabulary"):
        build(model(), languages=("en", "sw"))
    with pytest.raises(UserError, match=r"no target language beside the source \(en\)"):
        build(model(), languages=("en",))
    with pytest.raises(UserError, match=r"distill\.layer=9"):
        build(model(), layer=9)
    with pytest.raises(UserError, match=r"distill\.synonyms=true: source language 'en' has no vocabulary"):
        build(model(), synonyms=True, empty=("en",))
    with pytest.raises(UserError, match="no target language has a vocabulary"):
        build(model(), empty=("fr", "it"))


def test_an_empty_vocabulary_is_told_and_left_out(build: Any, model: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(model(), empty=("it",)).languages == ("fr",)
    assert "warning: the vocabulary of it is empty, so nothing is switched to it" in capsys.readouterr().err


@pytest.mark.parametrize("shortlist", [0, 32])
def test_the_source_language_comes_last_if_synonyms_are_asked_for(build: Any, model: Make, shortlist: int) -> None:
    table = build(model(), synonyms=True, shortlist=shortlist)
    assert (table.languages, table.source) == (("fr", "it", "en"), ("en",))
    plain = build(model(), shortlist=shortlist)
    assert plain.source == () and plain.fingerprint != table.fingerprint
    np.testing.assert_array_equal(table.ids_NLK[:, :2], plain.ids_NLK)


def test_equal_scores_are_ordered_by_id_up_to_the_last_place() -> None:
    logits = torch.tensor([[1.0, 3, 2, 3, 2, 2, 0], [5, 5, 5, 5, 5, 5, 5], [7, 6, 5, 4, 3, 2, 1]])
    for k in range(1, 8):
        top, column = top_of(logits, k)
        expected = [sorted(range(7), key=lambda i, row=row: (-row[i], i))[:k] for row in logits.tolist()]
        assert column.tolist() == expected
        torch.testing.assert_close(top, logits.gather(1, column))


def test_a_table_that_switches_nothing_says_why(build: Any, model: Make, capsys: pytest.CaptureFixture[str]) -> None:
    table = build(model(), temperature=10.0, whole_words=True)
    row = {"coverage": 0.0, "without": 0.0, "highest_probability": 0.1}
    for change, cause in (
        ({}, "of 0.3 or more, so nothing is switched: the highest is 0.1000: lower the threshold"),
        ({"words": 0}, "the corpus has no words"),
        ({"without": 1.0}, "no word has a candidate"),
        ({"highest_probability": 0.0, "without": 0.5}, "the word itself"),
    ):
        stats = {"languages": {"fr": {**row, **change}}, "words": change.get("words", 9), "threshold": 0.3}
        table.write_stats(stats)
        warn_if_nothing(stats, table)
        assert cause in capsys.readouterr().err.strip().splitlines()[-1]
    stats = {
        "languages": {"fr": {**row, "coverage": 0.0, "highest_probability": 0.3}},
        "threshold": 0.3,
    }  # one of 20,000
    warn_if_nothing(stats, table)
    assert capsys.readouterr().err == ""


def test_counts_at_another_threshold_equal_those_over_all_tokens(
    build: Any, model: Make, tokenizer: Tokenizer, dataset: Dataset, vocabularies: LanguageVocabularies
) -> None:
    table = build(model(), temperature=0.1)
    word = letters_V(tokenizer)[dataset.ids] & ~dataset.special
    for threshold in (0.0, 0.15, 0.3):
        stats = count(table, dataset, letters_V(tokenizer), threshold).stats(
            table.languages, dict.fromkeys(table.languages, 1)
        )
        for index, language in enumerate(table.languages):
            ids = table.ids_NLK[word, index, 0]
            other = (ids >= 0) & (ids != dataset.ids[word])
            sure = table.probability_NLK[word, index, 0].astype(np.float32) >= threshold
            row = stats["languages"][language]
            assert row["coverage"] == pytest.approx((other & sure).mean(), abs=1e-4)
            assert row["identity"] == pytest.approx((ids == dataset.ids[word]).mean(), abs=1e-4)
            assert row["without"] == pytest.approx((ids < 0).mean(), abs=1e-4)
    assert table.stats()["threshold"] == 0.3
    for language, row in stats["languages"].items():
        assert table.stats()["languages"][language] == {**row, "vocabulary": len(vocabularies.ids[language])}


def test_a_lens_below_the_last_layer_runs_no_layer_above_it(build: Any, model: Make) -> None:
    made = model()
    ran: list[int] = []
    for number, layer in enumerate(made.encoder.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    build(made, layer=1)
    assert set(ran) == {1}
    assert table_module.SPAN % table_module.BLOCK == 0
