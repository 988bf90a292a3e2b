"""The ordinary objective, against PyTorch's cross-entropy. Masking is that of ``target_language_mlm``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.criterions.test_target_language_mlm import LANGUAGES, MASK, D, V, make_batch
from xsalt.criterions import masked_lm
from xsalt.criterions.masked_lm import MaskedLM, MaskedLMConfig
from xsalt.protocols import Needs


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        rows_VD = torch.randn(V, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.rows_VD = nn.Parameter(rows_VD)
        self.mlm_layer = 2

    def mlm_logits(self, h_ND: Tensor, ids_V: Tensor | None = None) -> Tensor:
        assert ids_V is None
        return h_ND @ self.rows_VD.T


def test_it_is_the_cross_entropy_over_the_whole_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Head()
    needs = Needs(
        model=model,
        tokenizer=SimpleNamespace(mask_id=MASK, vocab_size=V),
        train=None,
        languages=LANGUAGES,
        source=("en",),
        cache=Path("."),
    )
    criterion = MaskedLM(MaskedLMConfig(mask_rate=0.5), needs)
    assert criterion.vocabulary_ids().tolist() == list(range(V))
    before = make_batch()
    batch = criterion.prepare(before)
    assert batch.mlm is not None
    at = batch.mlm.position_N
    assert (batch.ids_T[at] == MASK).all()
    assert set(batch.language_T[at].tolist()) == {0, 1, 2}  # no language is left out
    assert len(at) / int((~before.special_T).sum()) == pytest.approx(0.5, abs=0.1)
    h_TD = torch.randn(300, D, dtype=torch.float64, requires_grad=True)
    expected = F.cross_entropy(h_TD[at] @ model.rows_VD.T, before.ids_T[at], reduction="sum")
    theirs = torch.autograd.grad(expected, [h_TD, model.rows_VD])
    for limit in (1 << 25, 3 * V):
        monkeypatch.setattr(masked_lm, "MAX_LOGITS", limit)
        loss = criterion(model, {2: h_TD}, batch).loss_sum
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
        for a, b in zip(torch.autograd.grad(loss, [h_TD, model.rows_VD]), theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
