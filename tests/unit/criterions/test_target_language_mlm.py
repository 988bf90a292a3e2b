from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsalt.batch import IGNORE, MASKED_VIEW, Batch, Layout, Mix
from xsalt.criterions import masked_lm
from xsalt.criterions.target_language_mlm import TargetLanguageMLM, TargetLanguageMLMConfig
from xsalt.errors import UserError
from xsalt.protocols import Needs
from xsalt.text.language_vocab import LanguageVocabularies

V, D, MASK = 50, 8, 49
LANGUAGES = ("en", "de", "xx")
IDS = {"en": np.arange(5, 25, dtype=np.int32), "de": np.arange(20, 40, dtype=np.int32)}


class Head(nn.Module):
    """A model with a word table and an identity head, in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.rows_VD = nn.Parameter(torch.randn(V, D, generator=generator, dtype=torch.float64))
        self.mlm_layer = 2
        self.widest = 0

    def mlm_logits(self, h_ND: Tensor, ids_V: Tensor | None = None) -> Tensor:
        assert ids_V is not None
        self.widest = max(self.widest, len(h_ND) * len(ids_V))
        return h_ND @ F.embedding(ids_V, self.rows_VD).T


def make(alone: bool = True, languages: Sequence[str] = ("en", "de"), **config: Any) -> TargetLanguageMLM:
    vocabularies = LanguageVocabularies(
        {k: IDS[k] for k in languages}, dict.fromkeys(languages, "corpus"), ("en",), "t"
    )
    needs = Needs(
        model=Head(),
        tokenizer=SimpleNamespace(mask_id=MASK, vocab_size=V),
        train=None,
        languages=LANGUAGES,
        source=("en",),
        cache=Path("."),
        alone=alone,
        vocabularies=vocabularies,
    )
    return TargetLanguageMLM(TargetLanguageMLMConfig(**config), needs)


def make_batch(examples: int = 30, length: int = 10, epoch: int = 0, mixed: bool = False) -> Batch:
    """Half of the tokens are English, the rest German or of a language without a vocabulary; the ends are special."""
    generator = torch.Generator().manual_seed(1)
    T = examples * length
    ids_T = torch.randint(5, 45, (T,), generator=generator)
    special = torch.zeros(examples, length, dtype=torch.bool)
    special[:, [0, -1]] = True
    batch = Batch(
        ids_T=ids_T,
        type_T=torch.zeros_like(ids_T),
        layout=Layout(np.full(examples, length)),
        uid_B=torch.arange(examples),
        view_B=torch.zeros(examples, dtype=torch.int64),
        label_B=torch.zeros(examples, dtype=torch.int64),
        language_T=torch.tensor([0, 1, 0, 2]).repeat(T)[:T],
        languages=LANGUAGES,
        special_T=special.view(-1),
        corpus_T=torch.arange(T),
        source_ids_T=ids_T,
        seed=1,
        epoch=epoch,
    )
    if mixed:
        return batch.with_(mix=Mix(ids_T, torch.rand(examples, D, generator=generator)), ids_T=ids_T.flip(0))
    return batch


def test_loss_and_gradients_equal_a_full_softmax_with_minus_infinity_outside() -> None:
    criterion, model = make(mask_rate=0.5), Head()
    batch = criterion.prepare(make_batch())
    h_TD = torch.randn(300, D, dtype=torch.float64, requires_grad=True)
    loss = criterion(model, {2: h_TD}, batch).loss_sum
    got = torch.autograd.grad(loss, [h_TD, model.rows_VD])

    assert batch.mlm is not None
    outside = torch.full((len(LANGUAGES), V), -torch.inf, dtype=torch.float64)
    for index, language in enumerate(LANGUAGES[:2]):
        outside[index, torch.from_numpy(IDS[language].astype(np.int64))] = 0
    logits = h_TD[batch.mlm.position_N] @ model.rows_VD.T + outside[batch.mlm.language_N]
    reference = F.cross_entropy(logits, batch.mlm.id_N, reduction="sum")
    expected = torch.autograd.grad(reference, [h_TD, model.rows_VD])
    assert criterion.count(batch) == len(batch.mlm.position_N) > 30
    torch.testing.assert_close(loss, reference, rtol=1e-10, atol=0)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("limit", [60, 700])  # less than each language's logits, and than those of both alone
def test_chunks_bound_the_logits_of_all_languages_together_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    criterion, batch = make(mask_rate=0.5), make(mask_rate=0.5).prepare(make_batch())
    h_TD = torch.randn(300, D, dtype=torch.float64, requires_grad=True)
    assert batch.mlm is not None
    per_language = np.bincount(batch.mlm.language_N.numpy()) * [len(IDS["en"]), len(IDS["de"])]
    assert per_language.sum() > 700 > per_language.max() > 60
    results, kept = [], []
    for bound in (1 << 25, limit):
        monkeypatch.setattr(masked_lm, "MAX_LOGITS", bound)
        model = Head()
        saved: set[int] = set()

        def pack(tensor: Tensor, saved: set[int] = saved) -> Tensor:
            if tensor.dim() == 2 and tensor.shape[1] in (len(IDS["en"]), len(IDS["de"])):
                saved.add(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = criterion(model, {2: h_TD}, batch)
        kept.append(len(saved))
        results.append((loss.loss_sum, *torch.autograd.grad(loss.loss_sum, [h_TD, model.rows_VD])))
        assert model.widest <= bound
    assert kept[0] > 0 and kept[1] == 0  # matrices as wide as a vocabulary that wait for the backward pass
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_second_criterion_of_its_kind_in_a_run_is_refused() -> None:
    with pytest.raises(UserError, match="masked_lm and target_language_mlm both choose"):
        make(alone=False).prepare(make(alone=False).prepare(make_batch()))


def test_alone_it_masks_in_place_what_it_predicts() -> None:
    before = make_batch()
    batch = make().prepare(before)
    assert batch.mlm is not None
    changed = torch.nonzero(batch.ids_T != before.ids_T)[:, 0]
    assert torch.equal(changed, batch.mlm.position_N)
    assert (batch.ids_T[changed] == MASK).all()
    assert torch.equal(before.ids_T[changed], batch.mlm.id_N)
    assert not batch.special_T[changed].any()
    for position, id_ in zip(changed.tolist(), batch.mlm.id_N.tolist(), strict=True):
        assert id_ in IDS[LANGUAGES[int(batch.language_T[position])]]


def test_beside_another_criterion_it_appends_masked_copies_without_a_label() -> None:
    before = make_batch(mixed=True)
    batch = make(alone=False).prepare(before)
    assert batch.mlm is not None
    assert batch.mix is not None
    assert before.mix is not None
    T, B = 300, 30
    assert torch.equal(batch.ids_T[:T], before.ids_T)
    assert torch.equal(batch.mix.other_ids_T[:T], before.mix.other_ids_T)
    assert batch.mix.r.shape == (2 * B, D)
    assert batch.layout.size == 2 * B
    assert batch.label_B.tolist() == [0] * B + [IGNORE] * B
    assert batch.view_B.tolist() == [0] * B + [MASKED_VIEW] * B
    assert (batch.mlm.position_N >= T).all()
    assert (batch.ids_T[batch.mlm.position_N] == MASK).all()
    assert (batch.mix.other_ids_T[batch.mlm.position_N] == MASK).all()
    assert torch.equal(before.mix.other_ids_T[batch.mlm.position_N - T], batch.mlm.id_N)


def test_unmasked_positions_leave_the_input_and_need_no_copy() -> None:
    before = make_batch()
    for alone in (True, False):
        batch = make(alone=alone, positions="unmasked").prepare(before)
        assert torch.equal(batch.ids_T, before.ids_T)
        assert batch.layout is before.layout
        assert make().count(batch) > 0


def test_mixed_positions_are_masked_for_the_most_part() -> None:
    batch = make(positions="mixed", mask_rate=1.0).prepare(make_batch(200))
    assert batch.mlm is not None
    share = (batch.ids_T[batch.mlm.position_N] == MASK).float().mean()
    assert share == pytest.approx(0.8, abs=0.05)


def test_the_mask_rate_is_a_share_of_the_tokens_that_can_be_predicted() -> None:
    full = make(mask_rate=1.0).prepare(make_batch(300)).mlm
    some = make(mask_rate=0.15).prepare(make_batch(300)).mlm
    assert full is not None
    assert some is not None
    assert len(some.position_N) / len(full.position_N) == pytest.approx(0.15, rel=0.15)


def test_positions_depend_on_the_epoch_and_the_example_only() -> None:
    criterion = make()
    first, again = criterion.prepare(make_batch()), criterion.prepare(make_batch())
    assert torch.equal(first.ids_T, again.ids_T)
    assert not torch.equal(first.ids_T, criterion.prepare(make_batch(epoch=1)).ids_T)
    few = criterion.prepare(make_batch().with_(uid_B=torch.arange(30).flip(0)))
    assert not torch.equal(first.ids_T == MASK, few.ids_T == MASK)


def test_a_batch_with_nothing_to_predict_has_a_zero_loss_with_a_gradient() -> None:
    criterion = make()
    batch = criterion.prepare(make_batch().with_(language_T=torch.full((300,), 2)))
    h_TD = torch.randn(300, D, requires_grad=True)
    loss = criterion(Head(), {2: h_TD}, batch).loss_sum
    loss.backward()
    assert float(loss.detach()) == 0
    assert criterion.count(batch) == 0
    assert h_TD.grad is not None


def test_it_reads_the_layer_of_the_head_and_touches_its_vocabularies() -> None:
    criterion = make()
    assert tuple(criterion.layers) == (2,)
    assert criterion.vocabulary_ids().tolist() == [*range(5, 40), MASK]


def test_no_vocabulary_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="no language has a vocabulary"):
        make(languages=())


def switched_batch(mixed: bool) -> Batch:
    """English and German sequences of which every third token was switched to the other language."""
    generator = torch.Generator().manual_seed(2)
    before = make_batch()
    own_T = torch.tensor([0, 1]).repeat(15)[before.layout.sequence_T]
    source_T = torch.randint(5, 40, (300,), generator=generator)
    switched_T = (torch.arange(300) % 3 == 1) & ~before.special_T
    ids_T = torch.where(switched_T, torch.randint(5, 40, (300,), generator=generator), source_T)
    batch = before.with_(
        ids_T=ids_T, source_ids_T=source_T, language_T=torch.where(ids_T != source_T, 1 - own_T, own_T)
    )
    if mixed:
        return batch.with_(mix=Mix(ids_T, torch.rand(30, D, generator=generator)), ids_T=source_T)
    return batch


@pytest.mark.parametrize("mixed", [False, True])
def test_what_was_replaced_is_predicted_where_it_was_in_the_language_of_its_sequence(mixed: bool) -> None:
    before = switched_batch(mixed)
    batch = make(predict="replaced", positions="unmasked", mask_rate=1.0).prepare(before)
    assert batch.mlm is not None
    assert torch.equal(batch.ids_T, before.ids_T)  # the switched text itself is read
    at = batch.mlm.position_N
    own_T = torch.tensor([0, 1]).repeat(15)[before.layout.sequence_T]
    stands_T = before.ids_T if before.mix is None else before.mix.other_ids_T
    members = [set(IDS["en"].tolist()), set(IDS["de"].tolist())]
    expected = [
        i
        for i in range(300)
        if stands_T[i] != before.source_ids_T[i] and int(before.source_ids_T[i]) in members[int(own_T[i])]
    ]
    assert at.tolist() == expected and len(expected) > 30
    assert torch.equal(batch.mlm.id_N, before.source_ids_T[at])
    assert torch.equal(batch.mlm.language_N, own_T[at])


def test_predicting_what_was_replaced_needs_something_that_replaces() -> None:
    criterion = make()
    needs = Needs(
        model=Head(),
        tokenizer=SimpleNamespace(mask_id=MASK, vocab_size=V),
        train=SimpleNamespace(languages=LANGUAGES, language=np.zeros(3, dtype=np.int64)),  # type: ignore[arg-type]
        languages=LANGUAGES,
        source=("en",),
        cache=Path("."),
        vocabularies=LanguageVocabularies(criterion.ids, dict.fromkeys(criterion.ids, "corpus"), ("en",), "t"),  # type: ignore[arg-type]
    )
    with pytest.raises(UserError, match="predict=replaced: nothing replaces tokens in this run: add --augmenter"):
        TargetLanguageMLM(TargetLanguageMLMConfig(predict="replaced"), needs)
