from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xsalt.batch import MASKED_VIEW, Batch, Layout
from xsalt.criterions.consistency import Consistency, ConsistencyConfig, view_pairs
from xsalt.errors import UserError


def batch_of(uids: list[int], views: list[int]) -> Batch:
    n = len(uids)
    ids = torch.zeros(n, dtype=torch.int64)
    return Batch(
        ids_T=ids,
        type_T=ids,
        layout=Layout(np.ones(n, dtype=np.int64)),
        uid_B=torch.tensor(uids),
        view_B=torch.tensor(views),
        label_B=ids,
        language_T=ids,
        languages=("en",),
        special_T=ids.bool(),
        corpus_T=ids,
        source_ids_T=ids,
    )


def criterion() -> Consistency:
    needs: Any = SimpleNamespace()
    return Consistency(ConsistencyConfig(weight=2.0), needs)


def test_the_first_view_is_paired_with_each_other_one_and_masked_copies_with_none() -> None:
    batch = batch_of([7, 5, 7, 5, 9, 7, 5], [1, 0, 0, 2, 0, 2, MASKED_VIEW])
    first, other = view_pairs(batch)
    assert sorted(zip(first.tolist(), other.tolist(), strict=True)) == [(1, 3), (2, 0), (2, 5)]
    assert criterion().count(batch) == 3


def test_it_is_the_symmetric_divergence_and_flows_into_both_views() -> None:
    batch = batch_of([3, 4, 3, 4], [0, 0, 1, 1])
    logits_BC = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model: Any = SimpleNamespace(classify=lambda hidden, layout: logits_BC)
    loss = criterion()(model, {}, batch)
    p = logits_BC.detach().double().softmax(-1)

    def divergence(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum()

    expected = sum(0.5 * (divergence(p[a], p[b]) + divergence(p[b], p[a])) for a, b in ((0, 2), (1, 3)))
    assert float(loss.loss_sum.detach()) == pytest.approx(float(expected), rel=1e-5)
    (grad,) = torch.autograd.grad(loss.loss_sum, logits_BC)
    assert (grad.abs().sum(1) > 0).all()
    agree = float((p[:2].argmax(-1) == p[2:].argmax(-1)).sum())
    assert loss.log == {"agreement": (agree, 2.0)}


def test_examples_of_one_view_are_an_error_that_says_what_to_add() -> None:
    with pytest.raises(UserError, match=r"several views.*augmenter\.codeswitch\.clean=true"):
        criterion().prepare(batch_of([1, 2], [0, 0]))
    assert criterion().prepare(batch_of([1, 1], [0, 1])) is not None
