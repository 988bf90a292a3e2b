from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from xsalt.augmenters.codeswitch import CodeSwitch, CodeSwitchConfig
from xsalt.data.dataset import Dataset
from xsalt.errors import UserError
from xsalt.protocols import Needs

Make = Callable[..., Needs]
ALL = np.arange(40)


def augmenter(needs: Needs, **config: Any) -> CodeSwitch:
    return CodeSwitch(CodeSwitchConfig(**config), needs)


def test_ratio_zero_gives_the_very_same_batch(dataset: Dataset, needs: Make) -> None:
    batch = dataset.batch(ALL, 1, 0)
    assert augmenter(needs(), ratio=0.0).augment(batch) is batch


def test_only_accepted_tokens_are_switched_to_one_language_an_example(dataset: Dataset, needs: Make) -> None:
    before = dataset.batch(ALL, 1, 0)
    batch = augmenter(needs(), ratio=1.0).augment(before)
    switched = batch.ids_T != before.ids_T
    even = torch.arange(len(batch.ids_T)) % 2 == 0
    assert torch.equal(switched, even & ~batch.special_T)
    shift = (batch.ids_T - before.ids_T)[switched]
    assert torch.equal(batch.language_T[switched], shift // 30)
    assert (batch.language_T[~switched] == 0).all()
    for example in range(len(ALL)):
        assert len(set(batch.language_T[switched & (batch.layout.sequence_T == example)].tolist())) == 1
    assert set(batch.language_T[switched].tolist()) == {1, 2}
    assert batch.source_ids_T is before.ids_T
    assert batch.log["augment/switch_rate"] == (float(switched.sum()), float((~before.special_T).sum()))


def test_ratio_and_probability_are_shares(dataset: Dataset, needs: Make) -> None:
    def switched(**config: Any) -> torch.Tensor:
        counts = []
        for epoch in range(40):
            before = dataset.batch(ALL, 1, epoch)
            batch = augmenter(needs(), **config).augment(before)
            counts.append((batch.ids_T != before.ids_T).view(40, 8).sum(1))
        return torch.stack(counts).float()

    assert switched(ratio=0.25).mean() == pytest.approx(0.25 * 3, rel=0.1)
    rows = switched(ratio=1.0, probability=0.3)
    assert set(rows.unique().tolist()) == {0.0, 3.0}
    assert (rows > 0).float().mean() == pytest.approx(0.3, rel=0.1)


def test_an_example_draws_the_same_in_any_batch_and_anew_in_each_epoch(dataset: Dataset, needs: Make) -> None:
    codeswitch = augmenter(needs(), ratio=0.5)
    whole = codeswitch.augment(dataset.batch(ALL, 3, 2)).ids_T.view(40, 8)
    order = np.array([17, 3, 30])
    assert torch.equal(codeswitch.augment(dataset.batch(order, 3, 2)).ids_T.view(3, 8), whole[torch.from_numpy(order)])
    assert not torch.equal(codeswitch.augment(dataset.batch(ALL, 3, 3)).ids_T.view(40, 8), whole)
    assert not torch.equal(codeswitch.augment(dataset.batch(ALL, 4, 2)).ids_T.view(40, 8), whole)


def test_another_view_of_an_example_draws_other_tokens(dataset: Dataset, needs: Make) -> None:
    codeswitch, batch = augmenter(needs(), ratio=0.5), dataset.batch(ALL, 1, 0)
    other = codeswitch.augment(batch.with_(view_B=batch.view_B + 1))
    assert not torch.equal(other.ids_T, codeswitch.augment(batch).ids_T)


def test_tokens_that_are_in_no_corpus_stay(dataset: Dataset, needs: Make) -> None:
    before = dataset.batch(ALL, 1, 0).with_(corpus_T=torch.full((320,), -1))
    assert torch.equal(augmenter(needs(), ratio=1.0).augment(before).ids_T, before.ids_T)


def test_weights_choose_the_languages(dataset: Dataset, needs: Make) -> None:
    batch = augmenter(needs(), ratio=1.0, weights={"de": 0.0}).augment(dataset.batch(ALL, 1, 0))
    assert set(batch.language_T.tolist()) == {0, 2}


def test_vocabulary_ids_hold_every_id_that_comes_out(dataset: Dataset, needs: Make) -> None:
    codeswitch = augmenter(needs(), ratio=1.0)
    before = dataset.batch(ALL, 1, 0)
    batch = codeswitch.augment(before)
    new = batch.ids_T[batch.ids_T != before.ids_T].numpy()
    assert np.isin(new, codeswitch.vocabulary_ids()).all()
    assert len(augmenter(needs(), threshold=0.95).vocabulary_ids()) == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"it": 1.0}, "no substitutions into 'it'"),
        ({"de": -1.0}, "at least 0"),
        ({"de": 0.0, "fr": 0.0}, "no language has a weight above 0"),
        ({"de": 1e308, "fr": 1e308}, r"1e\+308 is too large"),
        ({"de": float("nan")}, "too large"),
    ],
)
def test_bad_weights_are_one_error_line(needs: Make, weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        augmenter(needs(), weights=weights)


def test_no_table_or_another_data_sets_is_an_error(dataset: Dataset, needs: Make) -> None:
    with pytest.raises(UserError, match="needs a substitution table"):
        augmenter(needs(table=None))
    shorter = Dataset(**{**dataset.__dict__, "ids": dataset.ids[:-1]})
    with pytest.raises(UserError, match="a table of 320 tokens"):
        augmenter(needs(train=shorter))


def test_a_clean_view_and_several_switched_ones_share_uid_and_label(dataset: Dataset, needs: Make) -> None:
    before = dataset.batch(ALL, 1, 0)
    batch = augmenter(needs(), ratio=0.5, clean=True, views=2).augment(before)
    clean, first, second = batch.ids_T.view(3, 40, 8)
    assert torch.equal(clean.flatten(), before.ids_T)
    assert torch.equal(batch.view_B, torch.tensor([0, 1, 2]).repeat_interleave(40))
    assert torch.equal(batch.uid_B, before.uid_B.repeat(3))
    assert torch.equal(batch.label_B, before.label_B.repeat(3))
    assert torch.equal(batch.source_ids_T, before.ids_T.repeat(3))
    assert batch.layout.lengths_B.tolist() == [8] * 120
    assert not torch.equal(first, second)
    one = augmenter(needs(), ratio=0.5).augment(before.with_(view_B=before.view_B + 2))
    assert torch.equal(one.ids_T, second.flatten())
    switched = float((batch.ids_T != batch.source_ids_T).sum())
    assert batch.log["augment/switch_rate"] == (switched, 2 * float((~before.special_T).sum()))


def test_each_token_can_have_a_language_of_its_own(dataset: Dataset, needs: Make) -> None:
    batch = augmenter(needs(), ratio=1.0, language_by="token").augment(dataset.batch(ALL, 1, 0))
    by_example = [set(row[row > 0].tolist()) for row in batch.language_T.view(40, 8)]
    assert sum(len(found) == 2 for found in by_example) > 10
    shift = (batch.ids_T - batch.source_ids_T)[batch.language_T > 0]
    assert torch.equal(shift // 30, batch.language_T[batch.language_T > 0])


def test_languages_that_more_tokens_can_be_switched_to_are_nearer(dataset: Dataset, needs: Make) -> None:
    made = needs()
    assert made.table.coverage(dataset.ids, 0.3).tolist() == pytest.approx([0.375, 0.375])
    french = made.table.ids_NLK[:, 1] - dataset.ids[:, None] == 60
    keep = np.arange(len(dataset.ids))[:, None] % 3 == 0
    ids_NLK = made.table.ids_NLK.copy()
    ids_NLK[:, 1] = np.where(french & ~keep, dataset.ids[:, None], ids_NLK[:, 1])  # "leave it as it is"
    made.table.ids_NLK = ids_NLK
    assert made.table.coverage(dataset.ids, 0.3).tolist() == pytest.approx([0.375, 0.125])
    codeswitch = augmenter(made, ratio=1.0, sampling="nearest", weights={"fr": 2.0})
    counts = np.zeros(3)
    for epoch in range(40):
        log = codeswitch.augment(dataset.batch(ALL, 1, epoch)).log
        counts += [0, *(log[f"augment/switch_rate/{language}"][1] for language in ("de", "fr"))]
    assert counts[1] / counts[2] == pytest.approx(1.5, rel=0.15)


def test_a_table_of_nothing_but_the_tokens_themselves_switches_nothing_and_says_so(
    dataset: Dataset, needs: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    made = needs()
    made.table.ids_NLK = np.where(made.table.ids_NLK >= 0, dataset.ids[:, None, None], -1)
    assert len(augmenter(made, ratio=1.0).vocabulary_ids()) == 0
    assert "warning: augmenter codeswitch switches nothing: " in capsys.readouterr().err


def test_equal_tokens_of_an_example_switch_together_if_asked_to(dataset: Dataset, needs: Make) -> None:
    before = dataset.batch(ALL, 1, 0)
    same = torch.full_like(before.ids_T, 20).where(~before.special_T, before.ids_T)
    before = before.with_(ids_T=same, source_ids_T=same)

    def switched(segments: str) -> list[torch.Tensor]:
        batch = augmenter(needs(), ratio=0.5, segments=segments).augment(before)
        return [row[1:-1] for row in batch.ids_T.view(40, 8)]

    alike = [set(row.tolist()) for row in switched("alike")]
    assert all(len(kinds) == 1 for kinds in alike)
    assert {kinds == {20} for kinds in alike} == {False, True}
    assert {int((row != 20).sum()) for row in switched("apart")} == {0, 1, 2, 3}


def test_a_curriculum_raises_the_ratio_epoch_by_epoch(dataset: Dataset, needs: Make) -> None:
    codeswitch = augmenter(needs(), ratio=0.8, ratio_epochs=2.0)
    rates = []
    for progress in (0.0, 0.5, 1.0, 2.0, 5.0):
        batch = codeswitch.augment(dataset.batch(ALL, 1, 0).with_(progress=progress))
        rates.append(float((batch.ids_T != batch.source_ids_T).sum()) / 120)
    assert rates[0] == 0.0
    assert rates == sorted(rates)
    assert rates[1] == pytest.approx(0.2, abs=0.1)
    assert rates[3] == rates[4] == pytest.approx(0.8, abs=0.1)


def test_rates_by_language_and_probabilities_are_logged(dataset: Dataset, needs: Make) -> None:
    batch = augmenter(needs(), ratio=1.0).augment(dataset.batch(ALL, 1, 0))
    log = batch.log
    for index, language in ((1, "de"), (2, "fr")):
        switched, words = log[f"augment/switch_rate/{language}"]
        assert switched == float((batch.language_T == index).sum()) > 0
        assert words == 2 * switched
    total, count = log["augment/probability"]
    assert count == log["augment/switch_rate"][0]
    assert total / count == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("sampling", ["uniform", "nearest"])
def test_a_threshold_that_no_substitution_reaches_is_a_warning_and_no_error(
    dataset: Dataset, needs: Make, sampling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    codeswitch = augmenter(needs(), threshold=0.95, sampling=sampling, ratio=1.0)
    assert len(codeswitch.vocabulary_ids()) == 0
    said = capsys.readouterr().err
    assert "a probability of augmenter.codeswitch.threshold=0.95 or more: the highest is 0.9000" in said
    batch = codeswitch.augment(dataset.batch(ALL, 1, 0))
    assert torch.equal(batch.ids_T, batch.source_ids_T)
