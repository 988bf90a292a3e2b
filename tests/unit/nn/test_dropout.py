"""Dropout is a pure function of its key and of the tokens, unbiased, and its gradient uses the same mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.parity.twins import batch
from xsalt.batch import Batch, Layout
from xsalt.kernels.philox import SiteKey, keep_attention, keep_hidden, philox, token_keys
from xsalt.nn.attention import SelfAttention
from xsalt.nn.dropout import KeyedDropout, set_dropout_key
from xsalt.nn.encoder import Encoder, EncoderConfig
from xsalt.randomness import philox as philox_numpy


def _batch(lengths: tuple[int, ...], uids: tuple[int, ...] | None = None, view: int = 0) -> Batch:
    made = batch(types=False, lengths=lengths)
    uid_B = torch.tensor(uids if uids is not None else range(len(lengths)))
    return made.with_(uid_B=uid_B, view_B=torch.full_like(uid_B, view))


def _dropped(site: str = "a", seed: int = 1, update: int = 2, p: float = 0.1, view: int = 0) -> torch.Tensor:
    dropout = KeyedDropout(p, site).train()
    set_dropout_key(dropout, seed, update, _batch((100, 150, 50), view=view))
    result: torch.Tensor = dropout(torch.ones(300, 100))
    return result


def test_the_generator_is_the_one_of_the_other_random_numbers() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (4, 50))
    key = (0xDEADBEEF, 0x12345678)
    tensors = [torch.from_numpy(c) for c in counters]
    words = philox((tensors[0], tensors[1], tensors[2], tensors[3]), *key)
    for mine, other in zip(words, philox_numpy(tuple(counters), key), strict=True):
        assert np.array_equal(mine.numpy().astype(np.uint64), other)


def test_the_mask_depends_on_seed_update_site_and_tokens_alone() -> None:
    torch.manual_seed(5)
    first = _dropped()
    torch.manual_seed(6)
    assert torch.equal(first, _dropped())
    for other in (_dropped("b"), _dropped(seed=9), _dropped(update=9), _dropped(view=1)):
        assert not torch.equal(first, other)
        agreement = ((first == 0) & (other == 0)).float().mean()
        assert abs(agreement - 0.01) < 0.004  # independent


def test_a_token_is_dropped_alike_in_every_batch() -> None:
    dropout = KeyedDropout(0.5, "a").train()
    attention = SelfAttention(16, 2, 0.5, "b").train()
    alone, among = _batch((5,), (42,)), _batch((9, 5, 7), (1, 42, 3))
    masks, contexts = [], []
    x_TD = torch.randn(21, 16)
    for made, rows in ((alone, slice(0, 5)), (among, slice(9, 14))):
        for module in (dropout, attention):
            set_dropout_key(module, 1, 1, made)
        x = torch.zeros(made.layout.tokens, 16)
        x[rows] = x_TD[:5]
        masks.append(dropout(torch.ones_like(x))[rows])
        contexts.append(attention(x, made.layout)[rows])
    assert torch.equal(*masks)
    assert torch.allclose(*contexts, atol=1e-6)


def test_sequences_views_and_positions_have_masks_of_their_own() -> None:
    layout = Layout(np.array([40, 40]))
    keys = token_keys(np.array([3, 2**40 + 3]), np.array([0, 1]), layout.sequence_T.numpy(), layout.position_T.numpy())
    assert len(np.unique(keys, axis=0)) == 80
    keep = keep_hidden(SiteKey(1, 2, 32768, torch.from_numpy(keys)), 64)
    assert len(torch.unique(keep, dim=0)) == 80
    heads = keep_attention(SiteKey(1, 2, 32768, torch.from_numpy(keys)), 12, 40)
    assert len(torch.unique(heads.transpose(0, 1).flatten(0, 1), dim=0)) == 960


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_mask_keeps_the_mean_and_drops_with_the_probability_asked_for(p: float) -> None:
    x = _dropped(p=p)
    assert abs((x == 0).float().mean() - p) < 0.01
    assert torch.allclose(x[x > 0], torch.tensor(1 / (1 - p)), rtol=1e-4)


def test_the_gradient_passes_where_the_value_passed() -> None:
    dropout = KeyedDropout(0.3, "a").train()
    set_dropout_key(dropout, 0, 0, _batch((20, 30)))
    x = torch.randn(50, 7, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad * x, y)


def test_nothing_is_dropped_in_evaluation_or_at_zero() -> None:
    x = torch.randn(4, 3)
    assert KeyedDropout(0.5, "a").eval()(x) is x
    assert KeyedDropout(0.0, "a").train()(x) is x


def test_training_without_a_key_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no key"):
        KeyedDropout(0.5, "a").train()(torch.ones(3, 2))


def test_every_site_of_an_encoder_draws_its_own_mask() -> None:
    encoder = Encoder(EncoderConfig(97, 8, 3, 2, 16, 12, 2, 1e-12, 0, 0))
    sites = [module.site for module in encoder.modules() if isinstance(module, KeyedDropout)]
    assert len(sites) == 9
    assert len(set(sites)) == 9


@pytest.mark.parametrize("lengths", [(3, 3), (4, 1, 2)])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_gradients_of_attention_are_those_of_finite_differences(lengths: tuple[int, ...], p: float) -> None:
    attention = SelfAttention(4, 2, p, "site").double().train()
    made = _batch(lengths)
    set_dropout_key(attention, 0, 0, made)
    x_TD = torch.randn(made.layout.tokens, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, made.layout), (x_TD,))
