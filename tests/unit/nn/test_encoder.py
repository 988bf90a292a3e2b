"""What the encoder leaves out or adds for speed changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xsalt import kernels
from xsalt.batch import Layout
from xsalt.kernels import layer as module
from xsalt.kernels.philox import SiteKey, token_keys
from xsalt.nn.dropout import KeyedDropout
from xsalt.nn.encoder import Encoder, EncoderConfig
from xsalt.protocols import FIRST

CONFIG = EncoderConfig(50, 24, 2, 3, 48, 64, 2, 1e-12, 0, 0, 0.2, 0.2)


@pytest.fixture(autouse=True)
def _auto() -> Iterator[None]:
    yield
    kernels.select("auto")


def keyed_encoder(lengths: tuple[int, ...]) -> tuple[Encoder, Layout]:
    torch.manual_seed(0)
    encoder, layout = Encoder(CONFIG), Layout(np.array(lengths))
    places = [t.numpy() for t in (layout.sequence_T, layout.position_T)]
    uid_B = np.arange(len(lengths))
    token_T3 = torch.from_numpy(token_keys(uid_B, uid_B * 0, *places))
    for number, child in enumerate(c for c in encoder.modules() if isinstance(c, KeyedDropout)):
        child._key = SiteKey(7, number, child.threshold, token_T3)
    return encoder, layout


@pytest.mark.parametrize("lengths", [(5, 9), (1,), (16, 16), (31,), (20, 13, 2)])
@pytest.mark.parametrize("bf16", [False, True])
def test_filled_up_tokens_give_the_same_states_and_gradients(
    lengths: tuple[int, ...], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, layout = keyed_encoder(lengths)
    x_TD = torch.randn(layout.tokens, 24)
    grad_TD = torch.randn(layout.tokens, 24)

    def run(filled_to: int, which: str) -> list[Tensor]:
        kernels.select(which)
        monkeypatch.setattr(module, "FILLED_TO", filled_to)
        encoder.zero_grad()
        leaf = x_TD.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = encoder(leaf, layout, keep=(1,))
        (hidden[1].sum() + (hidden[2] * grad_TD).sum()).backward()
        assert hidden[1].shape == hidden[2].shape == x_TD.shape
        assert leaf.grad is not None
        gradients = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        return [hidden[1].detach(), hidden[2].detach(), leaf.grad, *gradients]

    plain = run(1, "auto")
    for other in (run(32, "auto"), run(32, "reference")):
        assert len(other) == len(plain)
        for a, b in zip(plain, other, strict=True):
            assert float((a - b).abs().max()) <= (0.05 if bf16 else 1e-5) * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("which", ["auto", "reference"])
@pytest.mark.parametrize("lengths", [(5, 9), (1,), (20, 13, 2), (1, 1, 1)])
def test_a_last_layer_of_first_tokens_alone_gives_their_states_and_the_same_gradients(
    lengths: tuple[int, ...], which: str
) -> None:
    kernels.select(which)
    encoder, layout = keyed_encoder(lengths)
    encoder.double() if which == "reference" else encoder
    weights = next(encoder.parameters())
    x_TD, grad_BD = (torch.randn(n, 24, dtype=weights.dtype) for n in (layout.tokens, layout.size))

    def run(first_only: bool, keep: tuple[int, ...] = (1,)) -> list[Tensor]:
        encoder.zero_grad()
        leaf = x_TD.clone().requires_grad_()
        hidden = encoder(leaf, layout, keep=keep, first_only=first_only)
        assert sorted(hidden) == ([FIRST, 1] if first_only and 2 not in keep else [1, 2])
        first_BD = hidden[FIRST] if FIRST in hidden else hidden[2][layout.first_B]
        ((first_BD * grad_BD).sum() + hidden[1].sin().sum()).backward()
        assert leaf.grad is not None
        gradients = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        return [first_BD.detach(), leaf.grad, *gradients]

    whole = run(False)
    bound = 1e-12 if which == "reference" else 1e-5
    for other in (run(True), run(True, (1, 2))):
        assert len(other) == len(whole)
        for a, b in zip(whole, other, strict=True):
            assert float((a - b).abs().max()) <= bound * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize(
    ("first_only", "keep", "last"), [(False, (), None), (True, (), None), (True, (2,), None), (False, (1,), 1)]
)
def test_products_that_are_computed_are_counted(first_only: bool, keep: tuple[int, ...], last: int | None) -> None:
    kernels.select("reference")  # plain operators: one multiply-add counts as two
    encoder, layout = Encoder(CONFIG).eval(), Layout(np.array((5, 9)))
    with FlopCounterMode(display=False) as counter:
        encoder(torch.randn(14, 24), layout, keep, last, first_only=first_only)
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.addmm]
    assert 2 * encoder.weight_products(layout, keep, last, first_only=first_only) == counted
