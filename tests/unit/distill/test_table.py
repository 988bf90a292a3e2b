from __future__ import annotations

from collections.abc import Callable
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
from xsalt.distill.table import ensure_table
from xsalt.errors import UserError
from xsalt.text.language_vocab import LanguageVocabularies
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
        **config: Any,
    ) -> Any:
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
            vocabularies,
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


def test_the_best_k_come_first_to_last(build: Any, model: Make) -> None:
    for shortlist in (0, 32):
        table = build(model(), k=3, shortlist=shortlist, temperature=0.1)
        word = table.ids_NLK[:, 0, 2] >= 0
        probability = table.probability_NLK[word, 0].astype(float)
        assert (np.diff(probability, axis=1) <= 0).all()
        assert all(len(set(row)) == 3 for row in table.ids_NLK[word, 0].tolist())
        np.testing.assert_array_equal(
            build(model(), k=1, shortlist=shortlist, temperature=0.1).ids_NLK[:, :, 0], table.ids_NLK[:, :, 0]
        )


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
    with pytest.raises(UserError, match=r"distill\.layer=9"):
        build(model(), layer=9)


def test_a_lens_below_the_last_layer_runs_no_layer_above_it(build: Any, model: Make) -> None:
    made = model()
    ran: list[int] = []
    for number, layer in enumerate(made.encoder.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    build(made, layer=1)
    assert set(ran) == {1}
    assert table_module.SPAN % table_module.BLOCK == 0
