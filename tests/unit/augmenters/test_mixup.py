from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

from xsalt.augmenters.codeswitch import CodeSwitch, CodeSwitchConfig
from xsalt.augmenters.mixup import Mixup, MixupConfig
from xsalt.batch import Batch, join
from xsalt.data.dataset import Dataset
from xsalt.errors import UserError
from xsalt.protocols import Needs

Make = Callable[..., Needs]
ALL = np.arange(40)


def mixup(needs: Needs, **config: Any) -> Mixup:
    return Mixup(MixupConfig(**config), needs)


@pytest.mark.parametrize(("by", "shape"), [("dimension", (40, 6)), ("instance", (40, 1)), ("token", (320, 1))])
def test_r_has_the_shape_that_was_asked_for(dataset: Dataset, needs: Make, by: str, shape: tuple[int, int]) -> None:
    mix = mixup(needs(), by=by).augment(dataset.batch(ALL, 1, 0)).mix
    assert mix is not None
    assert mix.r.shape == shape
    assert mix.by_token is (by == "token")
    assert mix.r.min() >= 0
    assert mix.r.max() <= 1
    assert len(mix.r.unique()) > 0.9 * mix.r.numel()


def test_after_codeswitch_it_mixes_what_that_switched(dataset: Dataset, needs: Make) -> None:
    both = needs(augmenters={"codeswitch": CodeSwitchConfig(), "mixup": MixupConfig()})
    before = dataset.batch(ALL, 1, 0)
    switched = CodeSwitch(CodeSwitchConfig(ratio=0.5), both).augment(before)
    batch = mixup(both).augment(switched)
    assert torch.equal(batch.ids_T, before.ids_T)
    assert batch.mix is not None
    assert torch.equal(batch.mix.other_ids_T, switched.ids_T)
    assert torch.equal(batch.language_T, switched.language_T)
    assert batch.log == switched.log


def test_after_a_codeswitch_that_switches_nothing_it_does_nothing(dataset: Dataset, needs: Make) -> None:
    batch = dataset.batch(ALL, 1, 0)
    assert mixup(needs(augmenters={"codeswitch": CodeSwitchConfig(), "mixup": MixupConfig()})).augment(batch) is batch


def test_alone_it_mixes_every_accepted_token(dataset: Dataset, needs: Make) -> None:
    before = dataset.batch(ALL, 1, 0)
    batch = mixup(needs(augmenters={"mixup": MixupConfig()})).augment(before)
    assert batch.mix is not None
    assert torch.equal(batch.ids_T, before.ids_T)
    assert int((batch.mix.other_ids_T != batch.ids_T).sum()) == 40 * 3
    assert batch.log["augment/switch_rate"][0] == 120


def test_r_is_the_same_in_any_batch_and_new_in_each_epoch(dataset: Dataset, needs: Make) -> None:
    for by in ("dimension", "instance", "token"):
        augmenter = mixup(needs(), by=by)

        def draw(order: np.ndarray, epoch: int, augmenter: Mixup = augmenter) -> torch.Tensor:
            mix = augmenter.augment(dataset.batch(order, 1, epoch)).mix
            assert mix is not None
            return mix.r.view(len(order), -1)

        assert torch.equal(draw(np.array([7, 2]), 0), draw(ALL, 0)[[7, 2]])
        assert not torch.equal(draw(ALL, 1), draw(ALL, 0))


def test_vocabulary_ids_are_the_substitutions_unless_codeswitch_has_them(needs: Make) -> None:
    assert len(mixup(needs()).vocabulary_ids()) > 0
    assert (
        len(mixup(needs(augmenters={"codeswitch": CodeSwitchConfig(), "mixup": MixupConfig()})).vocabulary_ids()) == 0
    )


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_r_is_distributed_as_beta(dataset: Dataset, needs: Make, alpha: float) -> None:
    augmenter = mixup(needs(), alpha=alpha, by="token")
    parts = []
    for epoch in range(20):
        mix = augmenter.augment(dataset.batch(ALL, 1, epoch)).mix
        assert mix is not None
        assert mix.r.dtype == torch.float32
        parts.append(mix.r.flatten().numpy())
    r = np.concatenate(parts)
    assert kstest(r, beta(alpha, alpha).cdf).pvalue > 0.001
    assert kstest(r, beta(alpha * 1.5, alpha * 1.5).cdf).pvalue < 0.001


def test_a_clean_view_is_not_mixed(dataset: Dataset, needs: Make) -> None:
    made = needs(augmenters={"codeswitch": CodeSwitchConfig(), "mixup": MixupConfig()})
    switched = CodeSwitch(CodeSwitchConfig(ratio=1.0, clean=True), made).augment(dataset.batch(ALL, 1, 0))
    batch = mixup(made).augment(switched)
    assert batch.mix is not None
    same = (batch.mix.other_ids_T == batch.ids_T).view(2, -1)
    assert same[0].all()
    assert not same[1].all()
    assert len(batch.mix.r) == 80


def switched_twice(made: Needs, dataset: Dataset, **config: Any) -> tuple[Batch, Batch]:
    """What codeswitch made of the batch, and that mixed between views."""
    made.augmenters = {"codeswitch": CodeSwitchConfig(**config), "mixup": MixupConfig(between="views")}
    one = CodeSwitch(made.augmenters["codeswitch"], made).augment(dataset.batch(ALL, 1, 0))
    return one, Mixup(made.augmenters["mixup"], made).augment(one)


def test_two_views_are_two_switchings_by_the_keys_of_codeswitch(dataset: Dataset, needs: Make) -> None:
    one, batch = switched_twice(needs(), dataset, ratio=0.5, threshold=0.3)
    assert batch.mix is not None
    other_T = batch.mix.other_ids_T
    assert torch.equal(batch.ids_T, one.ids_T)
    assert not torch.equal(other_T, batch.ids_T)
    even = (torch.arange(len(other_T)) % 2 == 0) & ~batch.special_T  # those with a probability of 0.9
    for ids_T in (batch.ids_T, other_T):
        new = ids_T != batch.source_ids_T
        assert (even | ~new).all()
        assert float(new.sum()) / float(even.sum()) == pytest.approx(0.5, abs=0.15)
        shift = (ids_T - batch.source_ids_T).view(40, 8)
        assert all(len(set(row[row > 0].tolist())) <= 1 for row in shift)  # one language a view
    both = (batch.ids_T != batch.source_ids_T) & (other_T != batch.source_ids_T)
    assert {True, False} == set((batch.ids_T[both] == other_T[both]).tolist())  # of one language, or of two
    new = other_T != batch.source_ids_T
    assert torch.equal(batch.language_T[new], (other_T - batch.source_ids_T)[new] // 30)
    assert (batch.language_T[~new] == 0).all()


def test_a_token_that_one_view_alone_switched_is_mixed_with_its_source(dataset: Dataset, needs: Make) -> None:
    _, batch = switched_twice(needs(), dataset, ratio=0.5)
    assert batch.mix is not None
    sides = torch.stack([batch.ids_T, batch.mix.other_ids_T])
    single = (sides[0] != sides[1]) & (sides == batch.source_ids_T).any(0)
    assert single.any()
    assert ((sides[:, single] == batch.source_ids_T[single]).sum(0) == 1).all()


def test_between_views_clean_ones_and_examples_left_alone_stay(dataset: Dataset, needs: Make) -> None:
    one, batch = switched_twice(needs(), dataset, ratio=0.9, clean=True, views=2, probability=0.5)
    assert batch.mix is not None
    source, first, other = (ids.view(3, 40, 8) for ids in (one.source_ids_T, batch.ids_T, batch.mix.other_ids_T))
    assert torch.equal(first[0], source[0]) and torch.equal(other[0], source[0])
    touched = [(side != source).any(-1)[1:].flatten() for side in (first, other)]
    assert 0.3 < float(touched[0].float().mean()) < 0.7
    assert float((touched[0] != touched[1]).float().mean()) < 0.05  # an example is switched in both or in none
    assert torch.equal(batch.view_B, torch.tensor([0, 1, 2]).repeat_interleave(40))
    assert len(batch.mix.r) == 120


def test_alone_mixup_switches_twice_by_its_own_keys(dataset: Dataset, needs: Make) -> None:
    made = needs(augmenters={"mixup": MixupConfig()})
    batch = mixup(made, between="views", ratio=0.5).augment(dataset.batch(ALL, 1, 0))
    assert batch.mix is not None
    for side in (batch.ids_T, batch.mix.other_ids_T):
        assert 30 < int((side != batch.source_ids_T).sum()) < 90
    assert not torch.equal(batch.ids_T, batch.mix.other_ids_T)


def test_mixup_before_codeswitch_is_an_error_that_says_the_order(needs: Make) -> None:
    with pytest.raises(UserError, match="write --augmenter codeswitch,mixup"):
        mixup(needs(augmenters={"mixup": MixupConfig(), "codeswitch": CodeSwitchConfig()}))


@pytest.mark.parametrize("where", ["before", "after"])
def test_where_it_mixes_goes_with_the_batch_joined_or_moved(where: str, dataset: Dataset, needs: Make) -> None:
    before = dataset.batch(ALL, 1, 0)
    batch = mixup(needs(), where=where).augment(before)
    for made in (batch, join([before, batch]), batch.to(torch.device("meta"))):
        assert made.mix is not None
        assert made.mix.after is (where == "after")
