from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

from xsalt.augmenters.codeswitch import CodeSwitch, CodeSwitchConfig
from xsalt.augmenters.mixup import Mixup, MixupConfig
from xsalt.data.dataset import Dataset
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
    both = needs(augmenters=("codeswitch", "mixup"))
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
    assert mixup(needs(augmenters=("codeswitch", "mixup"))).augment(batch) is batch


def test_alone_it_mixes_every_accepted_token(dataset: Dataset, needs: Make) -> None:
    before = dataset.batch(ALL, 1, 0)
    batch = mixup(needs(augmenters=("mixup",))).augment(before)
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
    assert len(mixup(needs(augmenters=("codeswitch", "mixup"))).vocabulary_ids()) == 0


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
    made = needs(augmenters=("codeswitch", "mixup"))
    switched = CodeSwitch(CodeSwitchConfig(ratio=1.0, clean=True), made).augment(dataset.batch(ALL, 1, 0))
    batch = mixup(made).augment(switched)
    assert batch.mix is not None
    same = (batch.mix.other_ids_T == batch.ids_T).view(2, -1)
    assert same[0].all()
    assert not same[1].all()
    assert len(batch.mix.r) == 80
