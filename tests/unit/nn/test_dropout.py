"""Dropout is a pure function of its key, unbiased, and its gradient uses the same mask."""

from __future__ import annotations

import pytest
import torch

from tests.parity.twins import batch
from xsalt.batch import Layout
from xsalt.nn.attention import SelfAttention, key_bias
from xsalt.nn.dropout import KeyedDropout, set_dropout_key
from xsalt.nn.encoder import Encoder, EncoderConfig


def _dropped(site: str = "a", key: tuple[int, int, int] = (1, 2, 3), p: float = 0.1) -> torch.Tensor:
    dropout = KeyedDropout(p, site).train()
    set_dropout_key(dropout, *key)
    result: torch.Tensor = dropout(torch.ones(300, 100))
    return result


def test_the_mask_depends_on_seed_update_micro_batch_and_site_alone() -> None:
    torch.manual_seed(5)
    first = _dropped()
    torch.manual_seed(6)
    assert torch.equal(first, _dropped())
    for other in (_dropped("b"), _dropped(key=(9, 2, 3)), _dropped(key=(1, 9, 3)), _dropped(key=(1, 2, 9))):
        assert not torch.equal(first, other)
        agreement = ((first == 0) & (other == 0)).float().mean()
        assert abs(agreement - 0.01) < 0.004  # independent


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_mask_keeps_the_mean_and_drops_with_the_probability_asked_for(p: float) -> None:
    x = _dropped(p=p)
    assert abs((x == 0).float().mean() - p) < 0.01
    assert torch.allclose(x[x > 0], torch.tensor(1 / (1 - p)), rtol=1e-4)


def test_the_gradient_passes_where_the_value_passed() -> None:
    dropout = KeyedDropout(0.3, "a").train()
    set_dropout_key(dropout, 0, 0, 0)
    x = torch.randn(50, 7, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad * x, y)


def test_nothing_is_dropped_in_evaluation_or_at_zero() -> None:
    x = torch.randn(4)
    assert KeyedDropout(0.5, "a").eval()(x) is x
    assert KeyedDropout(0.0, "a").train()(x) is x


def test_training_without_a_key_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no key"):
        KeyedDropout(0.5, "a").train()(torch.ones(3))


def test_every_site_of_an_encoder_draws_its_own_mask() -> None:
    encoder = Encoder(EncoderConfig(97, 8, 3, 2, 16, 12, 2, 1e-12, 0, 0))
    sites = [module.site for module in encoder.modules() if isinstance(module, KeyedDropout)]
    assert len(sites) == 9
    assert len(set(sites)) == 9


@pytest.mark.parametrize("lengths", [(3, 3), (4, 1, 2)])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_gradients_of_attention_are_those_of_finite_differences(lengths: tuple[int, ...], p: float) -> None:
    attention = SelfAttention(4, 2, p, "site").double().train()
    layout = Layout(batch(types=False, lengths=lengths).layout.lengths_B)
    set_dropout_key(attention, 0, 0, 0)
    x_TD = torch.randn(layout.tokens, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, layout, key_bias(layout)), (x_TD,))
