"""Mean states of pieces in plain text, against sums token by token in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.unit.distill.tiny import ENGLISH, FRENCH, LANGUAGES
from xsalt.config_distill import DistillConfig
from xsalt.data.dataset import Dataset, Example, tokenise
from xsalt.data.substitutions import SubstitutionTable
from xsalt.distill import anchors as anchors_module
from xsalt.distill.anchors import Anchors, SumsFolder, fit_anchors, read_texts
from xsalt.distill.table import ensure_table
from xsalt.errors import UserError
from xsalt.nn.inference import inference
from xsalt.text.language_vocab import LanguageVocabularies
from xsalt.text.tokenizer import Tokenizer

Make = Callable[..., Any]
LAYER = 2


def plain(tokenizer: Tokenizer, cache: Path, seed: int = 0) -> dict[str, Dataset]:
    """Text of three languages; no French text has "rue", and the Italian is some of the French."""
    rng = np.random.default_rng(seed)
    words = {"en": ENGLISH, "fr": FRENCH[:-1], "it": FRENCH[:4]}
    found = {}
    for language, of_language in words.items():
        lines = [Example(" ".join(rng.choice(of_language, size=6)) + " .", None, -100, str(i)) for i in range(70)]
        found[language] = tokenise({language: lines}, tokenizer, 64, LANGUAGES, cache)
    return found


def states(model: Any, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Ids and states (float64) of all tokens that are not special, passage by passage."""
    ids, rows = [], []
    for index in range(len(data)):
        batch = data.batch(np.array([index]))
        h_TD = model.encode(model.embed(batch), batch.layout, keep=(LAYER,), last=LAYER)[LAYER]
        inside = ~batch.special_T
        ids.append(batch.ids_T[inside].numpy())
        rows.append(h_TD[inside].double().numpy())
    return np.concatenate(ids), np.concatenate(rows)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def reference(model: Any, vocabularies: LanguageVocabularies, texts: dict[str, Dataset]) -> dict[str, Any]:
    """Language -> mean, anchors and which ids were seen, in float64."""
    table_VD = model.embeddings.word.weight.detach().double().numpy()
    found = {}
    with inference(model):
        for language, data in texts.items():
            ids, rows = states(model, data)
            mean, members = rows.mean(0), vocabularies.ids[language]
            plain_VD = table_VD[members] - table_VD[members].mean(0)
            anchors = [
                rows[ids == i].mean(0) - mean if (ids == i).any() else plain_VD[n] for n, i in enumerate(members)
            ]
            found[language] = (mean, unit(np.stack(anchors)), np.isin(members, ids))
    return found


def test_an_anchor_is_the_mean_state_of_its_piece_less_that_of_its_language(
    model: Make, tokenizer: Tokenizer, vocabularies: LanguageVocabularies, tmp_path: Path
) -> None:
    made, texts = model(), plain(tokenizer, tmp_path)
    expected = reference(made, vocabularies, texts)
    with inference(made):
        found = fit_anchors(made, vocabularies, texts, LAYER, SumsFolder(tmp_path / "sums", "m"))
    for language, (mean, anchors, seen) in expected.items():
        np.testing.assert_allclose(found.mean_D[language], mean, atol=1e-5)
        np.testing.assert_allclose(found.rows_VD[language], anchors, atol=1e-5)
        assert found.seen_V[language].tolist() == seen.tolist()
    assert not bool(found.seen_V["fr"].all())  # "rue" and "ment" have the centred rows of the table


def test_hubness_is_the_mean_cosine_with_the_nearest_source_anchors(
    model: Make,
    tokenizer: Tokenizer,
    vocabularies: LanguageVocabularies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anchors_module, "NEIGHBOURS", 3)
    made, texts = model(), plain(tokenizer, tmp_path)
    expected = reference(made, vocabularies, texts)
    with inference(made):
        found = fit_anchors(made, vocabularies, texts, LAYER, SumsFolder(tmp_path / "sums", "m"))
    cosine = expected["fr"][1] @ expected["en"][1][expected["en"][2]].T
    nearest = np.sort(cosine, axis=1)[:, -3:].mean(1)
    np.testing.assert_allclose(found.hubness("fr", ("en",)), nearest, atol=1e-5)


def build(
    made: Any, tokenizer: Tokenizer, vocabularies: LanguageVocabularies, dataset: Dataset, cache: Path, **texts: Any
) -> SubstitutionTable:
    config = DistillConfig(method="anchors", layer=LAYER, temperature=0.1)
    given = ("en", "fr", "it"), ("en",), vocabularies, config, cache
    return ensure_table(lambda: made, "m", False, tokenizer, dataset, *given, **texts)


def test_substitutions_are_the_nearest_anchors_held_back_by_their_hubness(
    model: Make, tokenizer: Tokenizer, vocabularies: LanguageVocabularies, dataset: Dataset, tmp_path: Path
) -> None:
    made, texts = model(), plain(tokenizer, tmp_path)
    table = build(made, tokenizer, vocabularies, dataset, tmp_path, texts=texts)
    found = reference(made, vocabularies, texts)
    with inference(made):
        ids_N, rows_ND = states(made, dataset)
    at_N = np.flatnonzero(~np.asarray(dataset.special))
    query_ND = unit(rows_ND - found["en"][0])
    sources = found["en"][1][found["en"][2]]
    initial_V, pieces = tokenizer.word_initial_V, tokenizer.pieces()
    checked = 0
    for column, language in enumerate(table.languages):
        members, anchors = vocabularies.ids[language], found[language][1]
        hubness = np.sort(anchors @ sources.T, axis=1)[:, -10:].mean(1)
        for n, position in enumerate(at_N):
            if not pieces[ids_N[n]].strip("▁").isalpha():
                continue
            kind = np.flatnonzero(initial_V[members] == initial_V[ids_N[n]])
            if len(kind) == 0:
                continue
            logits = (anchors[kind] @ query_ND[n] - hubness[kind] / 2) / 0.1
            chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            best = table.ids_NLK[position, column, 0]
            if len(kind) > 1 and np.sort(chances)[-1] - np.sort(chances)[-2] > 1e-4:
                assert best == members[kind[chances.argmax()]]
                checked += 1
            assert float(table.probability_NLK[position, column, 0]) == pytest.approx(chances.max(), abs=2e-3)
    assert checked > 100


def test_a_table_belongs_to_its_texts(
    model: Make, tokenizer: Tokenizer, vocabularies: LanguageVocabularies, dataset: Dataset, tmp_path: Path
) -> None:
    made = model()
    prints = [
        build(made, tokenizer, vocabularies, dataset, tmp_path, texts=plain(tokenizer, tmp_path, seed)).fingerprint
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]
    fewer = replace(vocabularies, ids={**vocabularies.ids, "en": vocabularies.ids["en"][:-1]})
    assert build(made, tokenizer, fewer, dataset, tmp_path, texts=plain(tokenizer, tmp_path)).fingerprint not in prints


def test_a_text_is_read_once_for_all_tables_of_a_model_and_again_where_its_sums_are_damaged(
    model: Make,
    tokenizer: Tokenizer,
    vocabularies: LanguageVocabularies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, texts, read = model(), plain(tokenizer, tmp_path), list[int]()
    sum_states = anchors_module._sum_states

    def counted(model: Any, data: Dataset, *arguments: Any) -> Any:
        read.append(id(data))
        return sum_states(model, data, *arguments)

    monkeypatch.setattr(anchors_module, "_sum_states", counted)

    def fitted(layer: int = LAYER, weights: str = "m") -> list[np.ndarray]:
        read.clear()
        with inference(made):
            found = fit_anchors(made, vocabularies, texts, layer, SumsFolder(tmp_path / "sums", weights))
        return [rows_VD.numpy() for rows_VD in found.rows_VD.values()]

    first = fitted()
    assert len(read) == 3
    np.testing.assert_equal(fitted(), first)
    assert read == []
    files = sorted((tmp_path / "sums").iterdir())
    assert len(files) == 3
    for file in files[:2]:
        raw = bytearray(file.read_bytes())
        raw[7] ^= 1
        file.write_bytes(raw)
    np.testing.assert_equal(fitted(), first)
    assert len(read) == 2
    fitted(LAYER - 1)
    assert len(read) == 3
    fitted(weights="others")
    assert len(read) == 3


def test_text_without_a_piece_of_the_source_vocabulary_holds_nothing_back(
    model: Make, tokenizer: Tokenizer, vocabularies: LanguageVocabularies, tmp_path: Path
) -> None:
    made, texts = model(), plain(tokenizer, tmp_path)
    with inference(made):
        found = fit_anchors(made, vocabularies, {**texts, "en": texts["it"]}, LAYER, SumsFolder(tmp_path / "sums", "m"))
    assert not found.seen_V["en"].any()
    assert found.hubness("fr", ("en",)).tolist() == [0.0] * len(vocabularies.ids["fr"])


def test_missing_empty_and_broken_texts_are_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs plain text: vocabulary\.text=DIR"):
        read_texts(None, ["fr"])
    with pytest.raises(UserError, match=r"fr\.txt: distill\.method=anchors needs it for 'fr'"):
        read_texts(str(tmp_path), ["fr"])
    (tmp_path / "fr.txt").write_text(" \n\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"fr\.txt: no text in it"):
        read_texts(str(tmp_path), ["fr"])
    (tmp_path / "fr.txt").write_bytes("une ligne\né".encode("latin-1"))
    with pytest.raises(UserError, match=r"fr\.txt:2: not UTF-8: byte 0xe9"):
        read_texts(str(tmp_path), ["fr"])
    (tmp_path / "fr.txt").write_text("un\n\n deux \n", encoding="utf-8")
    assert read_texts(str(tmp_path), ["fr"]) == {"fr": ["un", "deux"]}


@pytest.mark.parametrize("candidates", [1, 3, 5, 6, 7, 1024 + 5, 1500])
def test_hubness_has_the_same_bits_for_any_number_of_threads(candidates: int) -> None:
    generator = torch.Generator().manual_seed(candidates)
    rows = {"fr": candidates, "en": 3000}
    rows_VD = {name: F.normalize(torch.randn(count, 384, generator=generator)) for name, count in rows.items()}
    seen_V = {name: torch.ones(count, dtype=torch.bool) for name, count in rows.items()}
    anchors = Anchors({}, rows_VD, seen_V)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(anchors.hubness("fr", ["en"]))
    finally:
        torch.set_num_threads(before)
    cosines = (rows_VD["fr"].double() @ rows_VD["en"].double().T).topk(10, dim=1).values.mean(1)
    torch.testing.assert_close(found[0].double(), cosines, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(one, found[0]) for one in found[1:])
