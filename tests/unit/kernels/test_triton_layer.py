"""Attention and dropout with residual and LayerNorm in Triton equal the reference, masks bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.kernels.gpu import DEVICE, placed
from tests.unit.kernels.test_layer import key_of, near, normals
from xsalt import kernels
from xsalt.batch import Layout
from xsalt.kernels import reference
from xsalt.kernels.attention import attention
from xsalt.kernels.norm import add_and_norm, dropout
from xsalt.kernels.philox import SiteKey, keep_attention, keep_hidden
from xsalt.nn.encoder import EncoderConfig, EncoderLayer

pytest.importorskip("triton", reason="no triton: pip install triton")

from xsalt.kernels.triton.attention import AttentionCall

TYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
DROPOUT = pytest.mark.parametrize("p", [0.0, 0.1])
CONFIG = EncoderConfig(
    vocab_size=10,
    hidden_size=48,
    layers=1,
    heads=3,
    ffn_size=64,
    max_positions=64,
    type_vocab_size=1,
    layer_norm_eps=1e-12,
    pad_id=0,
    position_offset=0,
)
CASES = {  # lengths, heads, width of a head
    "equal": ((5, 5), 3, 8),
    "a token": ((1,), 1, 20),
    "unequal": ((40, 1, 33), 2, 20),
    "two groups of heads": ((3, 2), 9, 16),
    "long": ((70, 3), 1, 16),
}


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton, wherever the tensors are."""
    monkeypatch.setattr(kernels, "triton_or_reference", lambda device: "triton")


def layout_of(lengths: tuple[int, ...]) -> Layout:
    return Layout(np.array(lengths, dtype=np.int64), DEVICE)


@pytest.mark.parametrize(("lengths", "heads"), [((5, 70, 1), 12), ((3,), 1), ((9, 3), 8)])
@pytest.mark.parametrize("p", [0.1, 0.9999])
def test_the_weights_that_stay_are_the_references_bit_by_bit(lengths: tuple[int, ...], heads: int, p: float) -> None:
    layout, key = layout_of(lengths), placed(key_of(lengths, p))
    bits_RGS = AttentionCall(layout.offset_B1, heads, layout.longest, key, first_only=False).keep_bits(layout.tokens)
    head_H = torch.arange(heads, device=DEVICE)
    keep_HTS = bits_RGS[:, head_H // 8].permute(1, 0, 2) >> (head_H % 8)[:, None, None] & 1
    assert torch.equal(keep_HTS[:, :, : layout.longest] == 1, keep_attention(key, heads, layout.longest))


@TYPES
@DROPOUT
@pytest.mark.parametrize(("lengths", "heads", "width"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("first_only", [False, True])
def test_attention_and_its_gradient_equal_the_reference_in_float64(
    lengths: tuple[int, ...], heads: int, width: int, p: float, first_only: bool, dtype: torch.dtype, bound: float
) -> None:
    layout, key = layout_of(lengths), placed(key_of(lengths, p))
    qkv = placed(normals(layout.tokens, 3 * heads * width).to(dtype)).requires_grad_()
    grad = placed(normals(layout.size if first_only else layout.tokens, heads * width, seed=2).to(dtype))
    context = attention(qkv, layout, heads, key, first_only=first_only)
    assert context.dtype == dtype
    exact = qkv.detach().double().requires_grad_()
    expected = reference.attention(exact, layout, heads, key)
    expected = expected[layout.first_B] if first_only else expected
    near(context, expected, bound)
    near(
        *(torch.autograd.grad(out, leaf, grad.to(out.dtype))[0] for out, leaf in ((context, qkv), (expected, exact))),
        bound,
    )


@pytest.mark.parametrize("width", [32, 64, 48])
def test_attention_has_the_widths_of_usual_heads(width: int) -> None:
    layout = layout_of((67, 7))
    qkv = placed(normals(layout.tokens, 3 * width))
    near(attention(qkv, layout, 1, None), reference.attention(qkv.double(), layout, 1, None), 1e-5)


def test_large_scores_do_not_overflow() -> None:
    layout = layout_of((33, 2))
    qkv = placed(normals(layout.tokens, 48)) * 100
    context = attention(qkv, layout, 1, None)
    near(context, reference.attention(qkv.double(), layout, 1, None), 1e-2)  # scores of some 10,000 in float32


@TYPES
@DROPOUT
@pytest.mark.parametrize("D", [384, 33])
@pytest.mark.parametrize("given", ["both", "wide", "low"])
def test_the_norm_and_its_gradients_equal_pytorchs_in_float64(
    D: int, p: float, given: str, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xsalt.kernels.triton.norm.PROGRAMS", 4)
    key = placed(key_of((5, 4), p))
    residual, y, grad, grad_low = (placed(normals(9, D, seed=seed)) for seed in range(4))
    gamma, beta = (placed(normals(D, seed=seed)) for seed in range(2))
    leaves = [leaf.requires_grad_() for leaf in (residual, y.to(dtype), gamma, beta)]
    out, low = add_and_norm(*leaves, 1e-12, key)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = F.layer_norm(exact[0] + reference.dropout(exact[1], key), (D,), *exact[2:], 1e-12)
    near(out, expected, 1e-5)
    assert low.dtype == dtype
    near(low, expected, bound)
    outs = [(out, grad), (low, grad_low.to(dtype))]
    outs = {"both": outs, "wide": outs[:1], "low": outs[1:]}[given]
    whole = sum(grad.double() for _, grad in outs)
    mine = torch.autograd.grad([out for out, _ in outs], leaves, [grad for _, grad in outs])
    for fast, plain, leaf in zip(mine, torch.autograd.grad(expected, exact, whole), leaves, strict=True):
        assert fast.dtype == leaf.dtype
        near(fast, plain, bound)


def test_what_the_norm_drops_is_the_references_bit_by_bit() -> None:
    """Where y is dropped its gradient is 0, and nowhere else."""
    key = placed(key_of((5, 4), 0.3))
    y = placed(normals(9, 130)).requires_grad_()
    ones = placed(torch.ones(130))
    out, _ = add_and_norm(placed(normals(9, 130, seed=2)), y, ones, ones, 1e-12, key)
    (grad,) = torch.autograd.grad((out * placed(normals(9, 130, seed=3))).sum(), y)
    assert torch.equal(grad != 0, keep_hidden(key, 130))


@pytest.mark.parametrize("width", [1, 130])
def test_dropout_alone_is_the_references(width: int) -> None:
    key, x = placed(key_of((5, 4), 0.3)), placed(normals(9, width)).requires_grad_()
    out, expected = dropout(x, key), reference.dropout(x, key)
    assert torch.equal(out, expected)
    assert torch.equal(*(torch.autograd.grad(y, x, torch.ones_like(y))[0] for y in (out, expected)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("first_only", [False, True])
def test_a_layer_in_training_equals_the_reference(
    precision: str, first_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout and autocast included; with bfloat16 both round, at other places."""
    monkeypatch.setattr("xsalt.nn.encoder.takes", lambda x_TD: False)
    lengths = (7, 35, 1)
    layout = layout_of(lengths)
    layer = EncoderLayer(CONFIG, "layer0").to(DEVICE)
    for number, site in enumerate((layer.attention.dropout, layer.attention_dropout, layer.ffn_dropout)):
        site._key = placed(key_of(lengths, site.p, number))
    x = placed(normals(layout.tokens, CONFIG.hidden_size)).requires_grad_()
    grad = placed(normals(layout.size if first_only else layout.tokens, CONFIG.hidden_size, seed=2))

    def run() -> list[Tensor]:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            out, _ = layer(x, x, layout, first_only=first_only)
        return [out, *torch.autograd.grad(out, [x, *layer.parameters()], grad)]

    fast = run()
    kernels.select("reference")
    try:
        plain = run()
    finally:
        kernels.select("auto")
    for mine, theirs in zip(fast, plain, strict=True):
        assert mine.dtype == theirs.dtype == torch.float32
        near(mine, theirs, 1e-4 if precision == "fp32" else 4e-2)


def test_no_tokens_and_no_gradients() -> None:
    empty = placed(torch.zeros(0, 24)).requires_grad_()
    assert attention(empty, layout_of(()), 2, None).shape == (0, 8)
    weight = placed(torch.ones(24))
    with torch.inference_mode():
        out, _ = add_and_norm(empty, empty, weight, weight, 1e-5, None)
    assert out.shape == (0, 24)


def test_the_reference_is_taken_where_it_is_chosen_and_for_float64() -> None:
    assert kernels.uses_triton(placed(torch.zeros(1)))
    assert not kernels.uses_triton(placed(torch.zeros(1, dtype=torch.float64)))
    kernels.select("reference")
    assert not kernels.uses_triton(placed(torch.zeros(1)))
    kernels.select("auto")


def test_a_key_of_some_tokens_is_theirs() -> None:
    key = key_of((3, 2), 0.1)
    assert isinstance(key, SiteKey)
    assert torch.equal(key.of(torch.tensor([3, 0])).token_T3, key.token_T3[[3, 0]])
