"""Tokens that are filled up with rows of zeros, for the matrix library's sake, change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from xsalt import kernels
from xsalt.batch import Layout
from xsalt.kernels.philox import SiteKey, token_keys
from xsalt.nn import encoder as module
from xsalt.nn.dropout import KeyedDropout
from xsalt.nn.encoder import Encoder, EncoderConfig

CONFIG = EncoderConfig(50, 24, 2, 3, 48, 64, 2, 1e-12, 0, 0, 0.2, 0.2)


@pytest.fixture(autouse=True)
def _auto() -> Iterator[None]:
    yield
    kernels.select("auto")


@pytest.mark.parametrize("lengths", [(5, 9), (1,), (16, 16), (31,), (20, 13, 2)])
@pytest.mark.parametrize("bf16", [False, True])
def test_filled_up_tokens_give_the_same_states_and_gradients(
    lengths: tuple[int, ...], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    encoder, layout = Encoder(CONFIG), Layout(np.array(lengths))
    places = [t.numpy() for t in (layout.sequence_T, layout.position_T)]
    uid_B = np.arange(len(lengths))
    token_T3 = torch.from_numpy(token_keys(uid_B, uid_B * 0, *places))
    for number, child in enumerate(c for c in encoder.modules() if isinstance(c, KeyedDropout)):
        child._key = SiteKey(7, number, child.threshold, token_T3)
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
