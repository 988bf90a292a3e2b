"""The active rows are the dense table by other means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.twins import batch
from xsalt import kernels
from xsalt.batch import Mix
from xsalt.errors import UserError
from xsalt.kernels.reference import mix_rows
from xsalt.nn.dropout import set_dropout_key
from xsalt.nn.embedding import ActiveRows, Embeddings
from xsalt.nn.encoder import EncoderConfig

V, D = 50, 6
LR, DECAY = 0.05, 0.1


def _table() -> Tensor:
    return torch.randn(V, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _loss(rows_ND: Tensor, update: int) -> Tensor:
    target = torch.randn(rows_ND.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(update))
    return ((rows_ND - target) ** 2).sum()


def test_training_the_active_rows_is_the_mathematics_of_the_dense_table_under_adamw() -> None:
    active = np.array([3, 7, 8, 20, 21, 49])
    dense = torch.nn.Parameter(_table())
    word = ActiveRows(_table())
    word.prepare(active)
    adamw = {"lr": LR, "weight_decay": DECAY, "betas": (0.9, 0.98)}
    dense_optimizer = torch.optim.AdamW([dense], **adamw)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([word.weight], **adamw)  # type: ignore[arg-type]
    for update in range(200):
        ids_N = torch.from_numpy(np.random.default_rng(update).choice(active, 9))
        dense_optimizer.zero_grad()
        _loss(F.embedding(ids_N, dense), update).backward()
        dense_optimizer.step()
        optimizer.zero_grad()
        _loss(word.rows(ids_N), update).backward()
        optimizer.step()
        word.decay_untouched(1 - LR * DECAY)
    assert torch.allclose(word.export(), dense, rtol=1e-12, atol=1e-14)
    word.grow(np.arange(V))
    assert torch.allclose(word.rows(torch.arange(V)), dense, rtol=1e-12, atol=1e-14)
    word.prepare(np.arange(10))  # another phase with other rows starts from the same table
    assert torch.allclose(word.export(), dense, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("prepared", [False, True])
def test_the_given_table_is_never_written_to(prepared: bool) -> None:
    table = _table()
    before = table.clone()
    word = ActiveRows(table)
    if prepared:
        word.prepare(np.arange(5))
    optimizer = torch.optim.AdamW(word.parameters(), lr=LR, weight_decay=DECAY)
    _loss(word.rows(torch.tensor([1, 2])), 0).backward()
    optimizer.step()
    assert torch.equal(table, before)
    assert not torch.equal(word.rows(torch.tensor([1, 2])), before[1:3])


def test_grown_rows_are_read_but_not_trained() -> None:
    word = ActiveRows(_table())
    word.prepare(np.array([1, 2]))
    word.grow(np.array([9, 2]))
    rows_ND = word.rows(torch.tensor([9, 1, 9]))
    assert torch.equal(rows_ND, _table()[[9, 1, 9]])
    rows_ND.sum().backward()
    assert word.weight.grad is not None
    assert torch.equal(word.weight.grad, torch.tensor([[1.0], [0.0]], dtype=torch.float64).expand(2, D))


def test_an_id_outside_of_the_active_rows_is_named() -> None:
    word = ActiveRows(_table())
    word.prepare(np.array([1, 2]))
    with pytest.raises(KeyError, match=r"1 token ids are not active or grown, for instance \[30\]"):
        word.rows(torch.tensor([1, 30]))
    word.grow(np.array([30]))
    with pytest.raises(KeyError, match="not trainable"):
        word.row_numbers(torch.tensor([1, 30]), trainable=True)
    for wrong in (np.array([V]), np.array([-1]), np.array([], np.int64)):
        with pytest.raises(ValueError, match="active ids must lie in"):
            word.prepare(wrong)


def test_export_and_load_are_each_others_reverse() -> None:
    word = ActiveRows(_table())
    word.prepare(np.array([1, 2]))
    word.decay_untouched(0.5)
    word.grow(np.array([9]))
    table = word.export()
    assert torch.equal(table[9], _table()[9] * 0.5)
    other = ActiveRows(torch.zeros(V, D, dtype=torch.float64))
    other.prepare(np.array([4]))
    other.grow(np.array([9]))
    other.load(table)
    assert torch.equal(other.export(), table)
    assert torch.equal(other.rows(torch.tensor([4, 9])), table[[4, 9]])


def test_a_table_that_can_be_read_again_is_not_kept_and_gives_the_same() -> None:
    asked = []

    def reload() -> Tensor:
        asked.append(1)
        return _table()

    table = _table()
    words = [ActiveRows(_table()), ActiveRows(table, reload)]
    words[1].load(table)  # the same one
    for word in words:
        word.prepare(np.array([3, 20, 49]))
        word.decay_untouched(0.5)
        with torch.no_grad():
            word.weight += 1
        word.grow(np.array([7, 8]))
    assert words[1]._table_VD is None
    assert asked
    kept, reloaded = (torch.cat([word.export(), word.rows(torch.tensor([7, 49, 8]))]) for word in words)
    assert torch.equal(kept, reloaded)
    for word in words:
        for rows in (7, 8192):
            assert torch.equal(torch.cat(list(word.export_parts(rows))), word.export())
    for word in words:
        word.prepare(np.array([4, 20]))  # what is not in the file any more must be kept
        word.load_active(torch.zeros(V, D, dtype=torch.float64))
    assert torch.equal(words[0].export(), words[1].export())
    assert not torch.equal(words[1].export()[3], _table()[3])
    assert words[1].export()[20].eq(0).all()


def _embeddings(types: int = 2, dropout: float = 0.0) -> Embeddings:
    config = EncoderConfig(97, 8, 1, 2, 16, 12, types, 1e-12, 1, 2, dropout, 0.0)
    embeddings = Embeddings(config, torch.randn(97, 8))
    for parameter in (embeddings.position, embeddings.token_type):
        torch.nn.init.normal_(parameter)
    return embeddings


@pytest.mark.parametrize("shape", ["instance and dimension", "instance", "token"])
def test_mixup_mixes_word_rows_before_position_and_type_are_added(shape: str) -> None:
    torch.manual_seed(0)
    embeddings = _embeddings()
    b = batch(types=True)
    other_ids_T = torch.randint(3, 97, b.ids_T.shape)
    rows = {"instance and dimension": (b.layout.size, 8), "instance": (b.layout.size, 1), "token": (len(b.ids_T), 1)}
    r = torch.rand(rows[shape])
    mixed_TD = embeddings(b.with_(mix=Mix(other_ids_T, r, by_token=shape == "token")))
    r_TX = r if shape == "token" else r[b.layout.sequence_T]
    table_VD = embeddings.word.export()
    words_TD = r_TX * table_VD[b.ids_T] + (1 - r_TX) * table_VD[other_ids_T]
    places_TD = embeddings.position[b.layout.position_T + 2] + embeddings.token_type[b.type_T]
    assert torch.allclose(mixed_TD, embeddings.norm(words_TD + places_TD), atol=1e-6)


def _layer_norm(x_TD: Tensor, embeddings: Embeddings) -> Tensor:
    centred_TD = x_TD - x_TD.mean(-1, keepdim=True)
    normed_TD = centred_TD / (centred_TD.square().mean(-1, keepdim=True) + embeddings.norm.eps).sqrt()
    return normed_TD * embeddings.norm.weight + embeddings.norm.bias


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("shape", ["instance and dimension", "instance", "token"])
@pytest.mark.parametrize("sparse", [True, False])
def test_mixup_after_the_embedding_layer_and_its_gradients_are_the_formulas_in_float64(
    kernel: str, shape: str, sparse: bool
) -> None:
    torch.manual_seed(0)
    kernels.select(kernel)
    fast, b = _embeddings().train(), batch(types=True)
    fast.word.sparse_gradient = sparse
    exact = _embeddings().double()
    with torch.no_grad():
        fast.norm.weight.normal_(1, 0.1)
        fast.norm.bias.normal_()
        exact.word.load(fast.word.export().double())
        for name, parameter in fast.named_parameters():
            exact.get_parameter(name).copy_(parameter)
    other_ids_T = torch.randint(3, 97, b.ids_T.shape)
    rows = {"instance and dimension": (b.layout.size, 8), "instance": (b.layout.size, 1), "token": (len(b.ids_T), 1)}
    r = torch.rand(rows[shape])
    mixed_TD = fast(b.with_(mix=Mix(other_ids_T, r, by_token=shape == "token", after=True)))

    r_TX = (r if shape == "token" else r[b.layout.sequence_T]).double()
    places_TD = exact.position[b.layout.position_T + 2] + exact.token_type[b.type_T]
    sides = [_layer_norm(exact.word.weight[ids_T] + places_TD, exact) for ids_T in (b.ids_T, other_ids_T)]
    expected_TD = r_TX * sides[0] + (1 - r_TX) * sides[1]
    assert torch.allclose(mixed_TD.double(), expected_TD, atol=1e-6)

    weights_TD = torch.randn(expected_TD.shape)
    (mixed_TD * weights_TD).sum().backward()
    (expected_TD * weights_TD).sum().backward()
    for name, parameter in fast.named_parameters():
        gradient, wanted = parameter.grad, exact.get_parameter(name).grad
        assert gradient is not None and wanted is not None
        assert gradient.is_sparse is (sparse and name == "word.weight")
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        assert torch.allclose(dense.double(), wanted, rtol=1e-4, atol=1e-4), name
    kernels.select("auto")


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("by_token", [True, False])
def test_the_interpolation_is_exact_at_0_and_1_and_where_nothing_was_switched(after: bool, by_token: bool) -> None:
    torch.manual_seed(0)
    embeddings, b = _embeddings(), batch(types=True)
    other_ids_T = torch.randint(3, 97, b.ids_T.shape)
    rows = len(b.ids_T) if by_token else b.layout.size
    source_TD, other_TD = embeddings(b), embeddings(b.with_(ids_T=other_ids_T))

    def mixed(r: Tensor, ids_T: Tensor = other_ids_T) -> Tensor:
        return embeddings(b.with_(mix=Mix(ids_T, r, by_token, after)))  # type: ignore[no-any-return]

    assert torch.equal(mixed(torch.ones(rows, 1)), source_TD)
    assert torch.equal(mixed(torch.zeros(rows, 1)), other_TD)
    assert torch.equal(mixed(torch.rand(rows, 1), b.ids_T), source_TD)
    assert not torch.equal(mixed(torch.full((rows, 1), 0.5)), source_TD)


def test_mixup_after_drops_by_the_key_that_plain_embeddings_drop_by() -> None:
    torch.manual_seed(0)
    embeddings, b = _embeddings(dropout=0.4).train(), batch(types=True)
    set_dropout_key(embeddings, 1, 5, b)
    plain_TD = embeddings(b)
    mixed_TD = embeddings(b.with_(mix=Mix(b.ids_T.flip(0), torch.rand(b.layout.size, 8), after=True)))
    assert torch.equal(plain_TD == 0, mixed_TD == 0)
    assert 0.2 < float((mixed_TD == 0).float().mean()) < 0.6
    whole_TD = embeddings(b.with_(mix=Mix(b.ids_T.flip(0), torch.ones(b.layout.size, 8), after=True)))
    assert torch.allclose(plain_TD, whole_TD, rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_in_between_changes_nothing_in_training_mixup_included(training: bool) -> None:
    torch.manual_seed(0)
    embeddings, b = _embeddings().train(training), batch(types=True)
    other_ids_T = torch.randint(3, 97, b.ids_T.shape)
    b = b.with_(mix=Mix(other_ids_T, torch.rand(b.layout.size, 8)))
    embeddings.word.prepare(np.unique(torch.cat([b.ids_T, other_ids_T]).numpy()))

    def output_and_gradient() -> tuple[Tensor, Tensor]:
        embeddings.zero_grad()
        x_TD = embeddings(b)
        x_TD.square().sum().backward()
        assert embeddings.word.weight.grad is not None
        return x_TD, embeddings.word.weight.grad.clone()

    before, gradient = output_and_gradient()
    embeddings.word.grow(np.arange(97))
    after, gradient_after = output_and_gradient()
    assert torch.equal(before, after)
    assert torch.allclose(gradient, gradient_after, rtol=1e-5, atol=1e-6)
    assert training is False or torch.equal(gradient, gradient_after)


def test_mixing_a_token_with_itself_keeps_it_bit_by_bit() -> None:
    weight_AD = torch.randn(9, 5)
    row_T = torch.tensor([1, 8, 3])
    assert torch.equal(mix_rows(weight_AD, row_T, row_T, torch.rand(3, 5), None), weight_AD[row_T])
    assert torch.equal(mix_rows(weight_AD, row_T, row_T.flip(0), torch.ones(3, 1), None), weight_AD[row_T])


def test_a_model_with_one_type_ignores_segments() -> None:
    embeddings = _embeddings(types=1)
    b = batch(types=True)
    assert torch.equal(embeddings(b), embeddings(b.with_(type_T=torch.zeros_like(b.type_T))))


def test_a_sequence_longer_than_the_position_table_is_the_users_error() -> None:
    with pytest.raises(UserError, match="a sequence has 13 tokens, but the model reads at most 12: set max_length=12"):
        _embeddings()(batch(types=False, lengths=(13, 2)))
