"""Several substitutions for a token, and synonyms of the source language."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.augmenters.conftest import EXAMPLES, LANGUAGES, LENGTH, K, substitution
from xsalt.augmenters.codeswitch import CodeSwitch, CodeSwitchConfig
from xsalt.batch import Batch
from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import SubstitutionTable
from xsalt.errors import UserError
from xsalt.protocols import Needs

Make = Callable[..., Needs]
ALL = np.arange(EXAMPLES)


def augmenter(needs: Needs, **config: Any) -> CodeSwitch:
    return CodeSwitch(CodeSwitchConfig(**config), needs)


def constant(table: SubstitutionTable, probability_LK: list[list[float]]) -> SubstitutionTable:
    """The same table with these probabilities at every token."""
    shape = table.ids_NLK.shape
    table.probability_NLK = np.broadcast_to(np.array(probability_LK, dtype=np.float16), shape).copy()
    return table


def switched(codeswitch: CodeSwitch, dataset: Dataset, epochs: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """(column, rank) of all substitutions made in so many epochs."""
    columns, ranks = [], []
    for epoch in range(epochs):
        batch = codeswitch.augment(dataset.batch(ALL, 1, epoch))
        new = batch.ids_T != batch.source_ids_T
        code = (batch.ids_T - batch.source_ids_T)[new].numpy()
        columns.append(code // 1000 - 1)
        ranks.append(code % 1000 // 100)
        assert np.array_equal(batch.language_T[new].numpy(), columns[-1])  # columns are the batch's languages here
        assert (batch.language_T[~new] == 0).all()
    return np.concatenate(columns), np.concatenate(ranks)


def test_a_sample_is_drawn_in_proportion_to_the_accepted_probabilities(
    dataset: Dataset, needs: Make, rich: SubstitutionTable
) -> None:
    table = constant(rich, [[0.5, 0.3, 0.1]] * 3)
    _, ranks = switched(augmenter(needs(table=table), ratio=1.0, threshold=0.2, choose="sample"), dataset)
    assert len(ranks) == 40 * EXAMPLES * (LENGTH - 2)
    assert np.bincount(ranks, minlength=K) / len(ranks) == pytest.approx([5 / 8, 3 / 8, 0], abs=0.02)
    _, ranks = switched(augmenter(needs(table=table), ratio=1.0, threshold=0.2, choose="best"), dataset)
    assert set(ranks) == {0}


def test_a_token_that_is_drawn_as_its_own_substitution_stays(
    dataset: Dataset, needs: Make, rich: SubstitutionTable
) -> None:
    table = constant(rich, [[0.4, 0.4, 0.2]] * 3)
    table.ids_NLK = np.array(table.ids_NLK)
    table.ids_NLK[:, :, 0] = np.where(dataset.special, -1, dataset.ids)[:, None]
    sample = augmenter(needs(table=table), ratio=1.0, threshold=0.3, choose="sample")
    _, ranks = switched(sample, dataset)
    assert set(ranks) == {1}
    assert len(ranks) / (40 * EXAMPLES * (LENGTH - 2)) == pytest.approx(0.5, abs=0.03)
    assert len(switched(augmenter(needs(table=table), ratio=1.0), dataset)[0]) == 0


def test_a_table_of_one_substitution_leaves_nothing_to_sample(needs: Make) -> None:
    with pytest.raises(UserError, match=r"choose=sample: .* one substitution .* set distill.k"):
        augmenter(needs(), choose="sample")


def test_the_source_language_is_never_a_target_unless_synonyms_are_asked_for(
    dataset: Dataset, needs: Make, rich: SubstitutionTable
) -> None:
    for sampling in ("uniform", "nearest"):
        codeswitch = augmenter(needs(table=rich), ratio=1.0, language_by="token", sampling=sampling, threshold=0.0)
        columns, _ = switched(codeswitch, dataset)
        assert set(columns) == {1, 2}
        assert codeswitch.vocabulary_ids().min() >= 2000
        log = codeswitch.augment(dataset.batch(ALL, 1, 0)).log
        assert "augment/switch_rate/en" not in log and "augment/switch_rate/de" in log


def test_a_token_becomes_a_synonym_with_the_probability_asked_for_and_keeps_its_language(
    dataset: Dataset, needs: Make, rich: SubstitutionTable
) -> None:
    codeswitch = augmenter(needs(table=constant(rich, [[0.9] * 3] * 3)), ratio=1.0, synonyms=0.3)
    columns, _ = switched(codeswitch, dataset)
    assert len(columns) == 40 * EXAMPLES * (LENGTH - 2)
    assert (columns == 0).mean() == pytest.approx(0.3, abs=0.02)
    log = codeswitch.augment(dataset.batch(ALL, 1, 0)).log
    assert log["augment/switch_rate/en"][0] == log["augment/switch_rate/en"][1] > 0
    assert sum(log[f"augment/switch_rate/{language}"][0] for language in LANGUAGES) == log["augment/switch_rate"][0]
    assert set(switched(augmenter(needs(table=rich), ratio=1.0, synonyms=1.0), dataset)[0]) == {0}


@pytest.mark.parametrize(("threshold", "synonym_threshold", "expected"), [(0.3, 0.5, {1, 2}), (0.6, 0.3, {0})])
def test_synonyms_have_a_threshold_of_their_own(
    threshold: float, synonym_threshold: float, expected: set[int], dataset: Dataset, needs: Make,
    rich: SubstitutionTable,
) -> None:  # fmt: skip
    table = constant(rich, [[0.4, 0.1, 0.1]] + [[0.4, 0.1, 0.1]] * 2)
    keys = {"threshold": threshold, "synonym_threshold": synonym_threshold}
    codeswitch = augmenter(needs(table=table), ratio=1.0, synonyms=0.5, **keys)
    assert set(switched(codeswitch, dataset)[0]) == expected
    assert set(codeswitch.vocabulary_ids() // 1000 - 1) == expected


def test_synonyms_without_a_table_of_them_are_an_error_that_names_the_key(needs: Make) -> None:
    with pytest.raises(UserError, match=r"synonyms=0.5: .* no synonyms in en: set distill.synonyms=true"):
        augmenter(needs(), synonyms=0.5)


def test_the_source_language_has_no_weight(needs: Make, rich: SubstitutionTable) -> None:
    with pytest.raises(UserError, match=r"no substitutions into 'en'.*known: de, fr"):
        augmenter(needs(table=rich), synonyms=0.5, weights={"en": 2.0})


def test_synonyms_are_of_the_tokens_own_language(dataset: Dataset, needs: Make, rich: SubstitutionTable) -> None:
    """Two source languages; the table has synonyms in both, or in English alone."""
    language = np.arange(EXAMPLES, dtype=np.int16) % 2  # en, de
    two = Dataset(**{**dataset.__dict__, "language": language})
    made = needs(table=rich, train=two)
    made.source = ("en", "de")
    batch = augmenter(made, ratio=1.0, synonyms=1.0, synonym_threshold=0.0).augment(two.batch(ALL, 1, 0))
    column = (batch.ids_T - batch.source_ids_T)[~batch.special_T] // 1000 - 1
    assert torch.equal(column, torch.from_numpy(language).long().repeat_interleave(LENGTH - 2))
    made.table = _without(rich, "de")
    batch = augmenter(made, ratio=1.0, synonyms=1.0, synonym_threshold=0.0).augment(two.batch(ALL, 1, 0))
    new = (batch.ids_T != batch.source_ids_T).view(EXAMPLES, LENGTH).any(1)
    assert new.tolist() == (language == 0).tolist()


def _without(table: SubstitutionTable, language: str) -> SubstitutionTable:
    keep = [i for i, known in enumerate(table.languages) if known != language]
    less = copy(table)
    less.languages = tuple(table.languages[i] for i in keep)
    less.ids_NLK, less.probability_NLK = table.ids_NLK[:, keep], table.probability_NLK[:, keep]
    return less


@pytest.mark.parametrize("choose", ["best", "sample"])
def test_every_id_that_comes_out_is_one_that_was_announced_and_no_more_than_needed(
    choose: str, dataset: Dataset, needs: Make, rich: SubstitutionTable
) -> None:
    keys = {"synonyms": 0.5, "synonym_threshold": 0.1, "threshold": 0.25}
    codeswitch = augmenter(needs(table=rich), ratio=1.0, choose=choose, **keys)
    seen = {int(i) for epoch in range(60) for i in codeswitch.augment(dataset.batch(ALL, 1, epoch)).ids_T if i >= 1000}
    announced = set(codeswitch.vocabulary_ids().tolist())
    assert seen <= announced
    assert len(announced - seen) < 0.1 * len(announced)
    assert {i % 1000 // 100 for i in announced} == ({0} if choose == "best" else {0, 1, 2})


def few_kinds(dataset: Dataset) -> Batch:
    """Examples of three kinds of tokens, so that each has many equal ones."""
    batch = dataset.batch(ALL, 1, 0)
    ids_T = torch.where(batch.special_T, batch.ids_T, 10 + batch.ids_T % 3)
    return batch.with_(ids_T=ids_T, source_ids_T=ids_T)


@pytest.mark.parametrize("language_by", ["instance", "token"])
@pytest.mark.parametrize("choose", ["best", "sample"])
@pytest.mark.parametrize("synonyms", [0.0, 0.4])
def test_alike_makes_equal_tokens_of_an_example_equal_and_apart_does_not(
    language_by: str, choose: str, synonyms: float, dataset: Dataset, needs: Make, rich: SubstitutionTable
) -> None:
    before = few_kinds(dataset)
    keys = {"language_by": language_by, "choose": choose, "synonyms": synonyms, "synonym_threshold": 0.3}

    def became(segments: str) -> list[set[int]]:
        """What each kind of token of each example became."""
        batch = augmenter(needs(table=rich), ratio=0.6, segments=segments, **keys).augment(before)
        pairs = zip(before.ids_T.view(EXAMPLES, LENGTH), batch.ids_T.view(EXAMPLES, LENGTH), strict=True)
        return [{int(new) for new in row[old == kind]} for old, row in pairs for kind in (10, 11, 12)]

    alike = became("alike")
    assert max(map(len, alike)) == 1
    assert any(kinds and min(kinds) >= 1000 for kinds in alike)
    assert max(map(len, became("apart"))) > 1


def test_alike_tokens_take_the_substitution_of_the_surest_of_them(
    dataset: Dataset, needs: Make, rich: SubstitutionTable
) -> None:
    before = few_kinds(dataset)
    batch = augmenter(needs(table=rich), ratio=1.0, segments="alike", weights={"fr": 0.0}).augment(before)
    ids, probability = rich.ids_NLK[:, 1, 0].reshape(EXAMPLES, LENGTH), rich.probability_NLK[:, 1, 0]
    probability = probability.reshape(EXAMPLES, LENGTH)
    for example in range(EXAMPLES):
        row = before.ids_T.view(EXAMPLES, LENGTH)[example].numpy()
        for kind in {10, 11, 12} & set(row):
            at = np.flatnonzero(row == kind)
            surest = at[np.argmax(probability[example, at])]
            expected = ids[example, surest] if probability[example, surest] >= 0.3 else kind
            assert set(batch.ids_T.view(EXAMPLES, LENGTH)[example, at].tolist()) == {expected}


def test_coverage_counts_what_could_be_switched(dataset: Dataset, needs: Make, rich: SubstitutionTable) -> None:
    batch = dataset.batch(ALL[:10], 1, 0)
    keys = {"threshold": 0.35, "synonym_threshold": 0.4, "synonyms": 0.1}
    found = augmenter(needs(table=rich), choose="sample", **keys).coverage(batch)
    for column, language in enumerate(LANGUAGES):
        accepted = rich.probability_NLK[: 10 * LENGTH, column].astype(np.float32) >= (0.4 if column == 0 else 0.35)
        expected = int((accepted.any(1) & ~dataset.special[: 10 * LENGTH]).sum())
        assert found[language] == (expected, 10 * (LENGTH - 2))
        assert 0 < expected < 10 * (LENGTH - 2)
    assert set(augmenter(needs(table=rich)).coverage(batch)) == {"de", "fr"}


def test_the_table_is_as_the_tests_say(dataset: Dataset, rich: SubstitutionTable) -> None:
    word = int(np.flatnonzero(~dataset.special)[0])
    assert rich.ids_NLK[word, 2, 1] == substitution(dataset.ids[word], 2, 1) == 3100 + dataset.ids[word]
