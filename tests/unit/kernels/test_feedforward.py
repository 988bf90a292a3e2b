"""The linear map of a GELU keeps less than PyTorch's and computes the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsalt import kernels
from xsalt.kernels import cpu
from xsalt.kernels.feedforward import gelu_linear

needs_build = pytest.mark.skipif(cpu.library()[0] is None, reason=f"kernels for the CPU: {cpu.library()[1]}")


@pytest.fixture(autouse=True)
def _auto() -> Iterator[None]:
    yield
    kernels.select("auto")


@needs_build
@pytest.mark.parametrize("build", cpu.runnable_builds())
def test_gelu_and_its_derivative_are_exact_from_far_below_to_far_above_zero(
    build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = cpu.load(build)
    assert not isinstance(loaded, str), loaded
    monkeypatch.setattr(cpu, "library", lambda: (loaded, build))
    x = torch.cat([torch.linspace(-12, 12, 20011), torch.tensor([-1e30, 1e30, 0.0, -0.0, 1e-30])])
    exact = x.double().requires_grad_()
    F.gelu(exact).sum().backward()
    assert exact.grad is not None
    grad = torch.ones_like(x)
    again = cpu.gelu_backward_(x, grad)
    assert torch.equal(again, cpu.gelu(x))
    assert torch.allclose(again.double(), F.gelu(x.double()), rtol=1e-6, atol=1e-6)
    assert torch.allclose(grad.double(), exact.grad, atol=1e-6)
    low = x[:-5].bfloat16()
    assert torch.allclose(cpu.gelu(low).double(), F.gelu(low.double()), rtol=2**-8, atol=1e-6)
    assert torch.isnan(cpu.gelu(torch.tensor([float("nan")] * 17))).all()


@needs_build
@pytest.mark.parametrize("T", [1, 37])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_equal_pytorch(T: int, dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(50, 20), torch.randn(T, 50).to(dtype)

    def run() -> list[Tensor]:
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = gelu_linear(leaf, layer.weight, layer.bias)
        y.float().sin().sum().backward()
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        assert leaf.grad is not None
        return [y.detach(), leaf.grad, layer.weight.grad, layer.bias.grad]

    fast = run()
    kernels.select("reference")
    for mine, theirs in zip(fast, run(), strict=True):
        assert mine.dtype == theirs.dtype
        assert float((mine - theirs).abs().max() / theirs.abs().max()) <= bound


@needs_build
def test_what_the_backward_pass_needs_is_the_input_alone() -> None:
    layer, x = nn.Linear(50, 20), torch.randn(37, 50)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        gelu_linear(x, layer.weight, layer.bias)
    assert kept == [x.shape, layer.weight.shape]
