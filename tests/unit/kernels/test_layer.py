"""The fused Transformer layer and its parts equal PyTorch's operators, values and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xsalt import kernels
from xsalt.batch import Layout
from xsalt.kernels import cpu, reference
from xsalt.kernels.layer import LayerCall, LayerWeights, encoder_layer, filled_up, takes, weights_stay
from xsalt.kernels.philox import SiteKey, token_keys

pytestmark = pytest.mark.skipif(cpu.library()[0] is None, reason=f"kernels for the CPU: {cpu.library()[1]}")
BUILDS = pytest.mark.parametrize("build", cpu.runnable_builds())
TYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])


@pytest.fixture(autouse=True)
def _auto() -> Iterator[None]:
    yield
    kernels.select("auto")


def use(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = cpu.load(build)
    assert not isinstance(loaded, str), loaded
    monkeypatch.setattr(cpu, "library", lambda: (loaded, build))


def key_of(lengths: tuple[int, ...], p: float, number: int = 0) -> SiteKey | None:
    layout = Layout(np.array(lengths, dtype=np.int64))
    uid_B = np.arange(len(lengths)) * 1000003
    keys = token_keys(uid_B, uid_B * 0, layout.sequence_T.numpy(), layout.position_T.numpy())
    return SiteKey(0x9ABCDEF0, 0x13579BDF + number, round(p * 65536), torch.from_numpy(keys)) if p else None


def near(fast: Tensor, plain: Tensor, bound: float) -> None:
    assert fast.shape == plain.shape
    fast, plain = fast.detach().double(), plain.detach().double()
    assert float((fast - plain).abs().max()) <= bound * max(1e-3, float(plain.abs().max()))


def normals(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@BUILDS
@TYPES
@pytest.mark.parametrize("D", [384, 33])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("given", ["both", "wide", "low"])
def test_the_norm_and_its_gradients_are_pytorchs(
    build: str, D: int, p: float, given: str, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(build, monkeypatch)
    key, low = key_of((30, 50), p), dtype == torch.bfloat16
    residual, y, grad, grad_low = (normals(80, D, seed=seed) for seed in range(4))
    bias, gamma, beta = (normals(D, seed=seed) for seed in range(3))
    y, grad_low = y.to(dtype), grad_low.to(dtype)
    out, grad_residual = torch.empty_like(residual), torch.empty_like(residual)
    out_low, grad_y = (torch.empty_like(y) if low else None), torch.empty_like(y)
    call = cpu.NormCall(gamma, beta, 1e-12, key, torch.empty_like(residual), torch.empty(2, 80))
    call.forward(residual, y, bias, out, out_low)
    if not low:
        given = "wide"
    grads = (None if given == "low" else grad, None if given == "wide" else grad_low)
    of_weights = call.backward(*grads, grad_residual, grad_y)

    leaves = [tensor.float().requires_grad_() for tensor in (residual, y, gamma, beta, bias)]
    expected = F.layer_norm(
        leaves[0] + reference.dropout(leaves[1] + leaves[4], key), (D,), leaves[2], leaves[3], 1e-12
    )
    near(out, expected, 1e-5)
    if out_low is not None:
        near(out_low, expected, bound)
    whole = sum(grad.float() for grad in grads if grad is not None)
    for mine, theirs in zip(
        (grad_residual, grad_y, *of_weights), torch.autograd.grad(expected, leaves, whole), strict=True
    ):
        near(mine, theirs, bound)


@BUILDS
@TYPES
@pytest.mark.parametrize(
    ("lengths", "heads", "head_width"),
    [((5, 5, 5), 12, 16), ((1,), 1, 7), ((40, 3, 17, 129, 64, 65), 12, 32), ((33, 2), 9, 66), ((1, 2), 3, 8)],
)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("first_only", [False, True])
def test_attention_and_its_gradient_equal_the_reference(
    build: str,
    lengths: tuple[int, ...],
    heads: int,
    head_width: int,
    p: float,
    first_only: bool,
    dtype: torch.dtype,
    bound: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(build, monkeypatch)
    layout, key = Layout(np.array(lengths, dtype=np.int64)), key_of(lengths, p)
    qkv = normals(layout.tokens, 3 * heads * head_width).to(dtype)
    rows = layout.size if first_only else layout.tokens
    grad = normals(rows, heads * head_width, seed=2).to(dtype)
    context, grad_qkv = attended(qkv, grad, layout, heads, key, first_only)
    leaf = qkv.float().requires_grad_()
    expected = reference.attention(leaf, layout, heads, key)
    if first_only:
        expected = expected[layout.first_B]
    near(context, expected, bound)
    near(grad_qkv, torch.autograd.grad(expected, leaf, grad.float())[0], bound)


def attended(
    qkv: Tensor, grad: Tensor, layout: Layout, heads: int, key: SiteKey | None, first_only: bool = False
) -> tuple[Tensor, Tensor]:
    d = qkv.shape[1] // (3 * heads)
    call = cpu.AttentionCall(layout.offset_B1, heads, layout.longest, d, key, first_only)
    context, norm, grad_qkv = torch.full_like(grad, 7), torch.empty(heads, len(grad)), torch.full_like(qkv, 7)
    call.forward(qkv, context, norm)
    call.backward(qkv, norm, grad, grad_qkv)
    return context, grad_qkv


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_a_sequence_is_the_same_whatever_batch_it_is_in(dtype: torch.dtype) -> None:
    qkv, grad = normals(140, 3 * 2 * 32).to(dtype), normals(140, 64, seed=2).to(dtype)

    def run(lengths: tuple[int, ...], begin: int, end: int) -> tuple[Tensor, Tensor]:
        return attended(qkv[begin:end], grad[begin:end], Layout(np.array(lengths, dtype=np.int64)), 2, None)

    together = run((30, 77, 33), 0, 140)
    for lengths, begin, end in (((30,), 0, 30), ((77, 33), 30, 140)):
        for alone, whole in zip(run(lengths, begin, end), together, strict=True):
            assert torch.equal(alone, whole[begin:end])


@BUILDS
def test_gelu_and_its_derivative_are_exact_from_far_below_to_far_above_zero(
    build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(build, monkeypatch)
    x = torch.cat([torch.linspace(-12, 12, 20011), torch.tensor([-1e30, 1e30, 0.0, -0.0, 1e-30])])[None]
    none, out, again, grad = torch.zeros_like(x[0]), torch.empty_like(x), torch.empty_like(x), torch.ones_like(x)
    exact = x.double().requires_grad_()
    F.gelu(exact).sum().backward()
    assert exact.grad is not None
    cpu.gelu(x, none, out)
    cpu.gelu_backward(x, none, grad, again)
    assert torch.equal(again, out)
    assert torch.allclose(again.double(), F.gelu(x.double()), rtol=1e-6, atol=1e-6)
    assert torch.allclose(grad.double(), exact.grad, atol=1e-6)
    low = x[:, :-5].bfloat16()
    out_low = torch.empty_like(low)
    cpu.gelu(low, none, out_low)
    assert torch.allclose(out_low.double(), F.gelu(low.double()), rtol=2**-8, atol=1e-6)
    nan, out_nan = torch.full((1, 17), float("nan")), torch.zeros(1, 17)
    cpu.gelu(nan, none, out_nan)
    assert torch.isnan(out_nan).all()


@BUILDS
@TYPES
@pytest.mark.parametrize(("T", "width"), [(1, 17), (37, 50), (0, 8)])
def test_the_bias_of_gelu_is_one_for_each_column(
    build: str, T: int, width: int, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(build, monkeypatch)
    x, bias, grad = normals(T, width).to(dtype), normals(width, seed=2), normals(T, width, seed=3).to(dtype)
    leaf, out, grad_x = (x.float() + bias).requires_grad_(), torch.empty_like(x), grad.clone()
    expected = F.gelu(leaf)
    (theirs,) = torch.autograd.grad(expected, leaf, grad.float())
    cpu.gelu_backward(x, bias, grad_x, out)
    if T:
        near(out, expected, bound)
        near(grad_x, theirs, bound)


@BUILDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("T", "width"), [(1, 1), (300, 200), (5, 64), (0, 70)])
def test_sums_of_columns_are_exact_to_float32(
    build: str, T: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(build, monkeypatch)
    x = normals(T, width).to(dtype)
    assert torch.allclose(cpu.column_sums(x).double(), x.double().sum(0), atol=1e-4)


def layer_inputs(lengths: tuple[int, ...], D: int, width: int) -> tuple[Tensor, LayerWeights, LayerCall]:
    shapes = ((3 * D, D), (3 * D,), (D, D), (D,), (D,), (D,), (width, D), (width,), (D, width), (D,), (D,), (D,))
    weights = LayerWeights(*((0.2 * normals(*s, seed=i)).requires_grad_() for i, s in enumerate(shapes)))
    layout, keys = Layout(np.array(lengths, dtype=np.int64)), (key_of(lengths, 0.2, i) for i in range(3))
    return filled_up(normals(layout.tokens, D)), weights, LayerCall(layout, 2, 1e-12, False, *keys)


def layer_in_float64(x_TD: Tensor, w: LayerWeights, call: LayerCall) -> Tensor:
    """With PyTorch's operators, on all tokens."""
    x = x_TD[: call.layout.tokens].double()
    v = LayerWeights(*(p.double() for p in w))
    context = reference.attention(F.linear(x, v.qkv, v.qkv_bias), call.layout, call.heads, call.weights_key)
    attended = reference.dropout(F.linear(context, v.out, v.out_bias), call.attention_key)
    x = F.layer_norm(x + attended, x.shape[1:], v.attention_gamma, v.attention_beta, call.eps)
    fed = F.linear(F.gelu(F.linear(x, v.ffn_in, v.ffn_in_bias)), v.ffn_out, v.ffn_out_bias)
    return F.layer_norm(x + reference.dropout(fed, call.ffn_key), x.shape[1:], v.ffn_gamma, v.ffn_beta, call.eps)


@pytest.mark.parametrize("lengths", [(5, 9), (1,), (20, 13, 2)])
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_layer_and_all_its_gradients_are_those_of_float64(
    lengths: tuple[int, ...], first_only: bool, bf16: bool
) -> None:
    x_TD, weights, call = layer_inputs(lengths, 24, 40)
    x_TD.requires_grad_()
    rows = call.layout.first_B
    whole = layer_in_float64(x_TD, weights, call)
    expected = whole[rows] if first_only else whole
    grad = normals(*expected.shape, seed=99)
    theirs = torch.autograd.grad(expected, (x_TD, *weights), grad.double())
    if first_only:
        narrow = (key and replace(key, token_T3=key.token_T3[rows]) for key in (call.attention_key, call.ffn_key))
        call = LayerCall(call.layout, 2, call.eps, True, call.weights_key, *narrow)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out, low = encoder_layer(x_TD, None, weights, call)
    assert (low is not None) == bf16
    bound = 0.05 if bf16 else 1e-5
    near(out[: len(expected)], expected, bound)
    if low is not None:
        assert torch.equal(low, out.bfloat16())
    mine = torch.autograd.grad(out[: len(expected)], (x_TD, *weights), grad)
    for name, fast, plain in zip(("x", *LayerWeights._fields), mine, theirs, strict=True):
        if name == "qkv_bias":  # that of keys cancels out: exactly zero, and rounding here and there
            fast, plain = (torch.cat([g[:24], g[48:]]) for g in (fast, plain))
        near(fast, plain, bound)


def test_the_two_inputs_of_a_layer_are_one_for_the_gradient() -> None:
    x_TD, weights, call = layer_inputs((9, 20), 24, 40)
    grads = []
    for apart in (False, True):
        leaf = x_TD.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out, _ = encoder_layer(leaf, leaf.bfloat16() if apart else None, weights, call)
        grads.append(torch.autograd.grad(out.cos().sum(), leaf)[0])
    assert torch.equal(*grads)


def test_frozen_parameters_and_inputs_get_no_gradient() -> None:
    x_TD, weights, call = layer_inputs((9, 20), 24, 40)
    frozen = LayerWeights(*(w.detach() for w in weights))._replace(ffn_in=weights.ffn_in)
    out, _ = encoder_layer(x_TD, None, frozen, call)
    (alone,) = torch.autograd.grad(out.cos().sum(), weights.ffn_in)
    out, _ = encoder_layer(x_TD, None, weights, call)
    assert torch.equal(alone, torch.autograd.grad(out.cos().sum(), weights.ffn_in)[0])


def test_other_types_and_the_reference_go_operator_by_operator() -> None:
    x_TD = torch.zeros(4, 8)
    assert takes(x_TD)
    assert not takes(x_TD.double())
    assert not takes(x_TD.bfloat16())
    with torch.autocast("cpu", torch.float16):
        assert not takes(x_TD)
    kernels.select("reference")
    assert not takes(x_TD)


def test_weights_that_stay_are_cast_once_and_compute_the_same() -> None:
    x_TD, weights, call = layer_inputs((9, 20), 32, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        out, _ = encoder_layer(x_TD, None, weights, call)
        with weights_stay():
            first, _ = encoder_layer(x_TD, None, weights, call)
            weights.ffn_out.zero_()  # which is forbidden, and shows that nothing is cast again
            again, _ = encoder_layer(x_TD, None, weights, call)
        after, _ = encoder_layer(x_TD, None, weights, call)
    near(first, out, 2e-2)
    assert torch.equal(first, again)
    assert not torch.allclose(after, first, atol=0.1)
