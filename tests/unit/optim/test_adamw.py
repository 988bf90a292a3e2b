"""One pass over memory, the mathematics of ``torch.optim.AdamW``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from xsalt import kernels
from xsalt.kernels import cpu
from xsalt.optim.adamw import AdamW, clipping, gradient_norm, load_state_tensors, make_adamw, parameter_groups

SETTINGS = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.98), "eps": 1e-8}
needs_build = pytest.mark.skipif(cpu.library()[0] is None, reason=f"kernels for the CPU: {cpu.library()[1]}")


@pytest.fixture(autouse=True)
def _auto() -> Iterator[None]:
    yield
    kernels.select("auto")


def _gradient(shape: tuple[int, ...], update: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(update))


@needs_build
@pytest.mark.parametrize("shape", [(1,), (7, 3), (301, 40), (3, 20000), (0, 5)])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_200_updates_are_those_of_torch_in_float64(shape: tuple[int, ...], scale: float) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mine, exact = nn.Parameter(start.clone()), nn.Parameter(start.double())
    optimizer = AdamW([mine], fused=True, **SETTINGS)  # type: ignore[arg-type]
    theirs = torch.optim.AdamW([exact], **SETTINGS)  # type: ignore[arg-type]
    assert optimizer.takes_sparse()
    for update in range(200):
        mine.grad = _gradient(shape, update)
        exact.grad = mine.grad.double() * scale
        optimizer.step(scale=scale)
        theirs.step()
    assert torch.allclose(mine.detach(), exact.detach().float(), rtol=1e-4, atol=2e-6)
    for key in ("step", "exp_avg", "exp_avg_sq"):
        assert torch.allclose(optimizer.state[mine][key].double(), theirs.state[exact][key].double(), 1e-5, 1e-6)


@pytest.mark.parametrize("which", kernels.CHOICES)
def test_a_sparse_gradient_updates_all_rows_as_the_dense_one_with_zeros_does(which: str) -> None:
    kernels.select(which)
    shape = (300, 17)
    start = torch.randn(shape)
    mine, exact = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = AdamW([mine], fused=True, **SETTINGS)  # type: ignore[arg-type]
    theirs = torch.optim.AdamW([exact], **SETTINGS)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    for update in range(20):
        rows_N = torch.randint(
            300, (update % 5 * 10,), generator=rng
        )  # some rows often, some twice, in some updates none
        sparse = torch.sparse_coo_tensor(
            rows_N[None], _gradient((len(rows_N), 17), update), shape, check_invariants=False
        )
        mine.grad, exact.grad = sparse, sparse.to_dense() * 0.5
        norm = gradient_norm([mine])
        assert norm == pytest.approx(float(2 * exact.grad.norm()), rel=1e-5)
        optimizer.step(scale=0.5)
        theirs.step()
    assert torch.allclose(mine, exact, rtol=1e-4, atol=2e-6)


@needs_build
def test_both_kinds_of_kernels_continue_from_each_others_state() -> None:
    start, ends = torch.randn(50, 6), []
    for order in (("auto", "reference"), ("reference", "auto"), ("reference", "reference")):
        weight = nn.Parameter(start.clone())
        optimizer = make_adamw(nn.ParameterList([weight]), **SETTINGS)  # type: ignore[arg-type]
        for update, which in enumerate(order):
            kernels.select(which)
            weight.grad = _gradient((50, 6), update)
            optimizer.step()
        ends.append(weight.detach())
    assert torch.allclose(ends[0], ends[2], atol=1e-6)
    assert torch.allclose(ends[1], ends[2], atol=1e-6)


@needs_build
def test_updates_are_the_same_bits_for_any_number_of_threads() -> None:
    ends, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        weight = nn.Parameter(torch.ones(700, 100))
        optimizer = AdamW([weight], fused=True, **SETTINGS)  # type: ignore[arg-type]
        weight.grad = _gradient((700, 100), 3)
        optimizer.step()
        ends.append(weight.detach())
    torch.set_num_threads(before)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_clipping_is_that_of_torch_and_zero_clips_nothing() -> None:
    weights = [nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2))]
    weights[0].grad, weights[1].grad = _gradient((5, 3), 0), _gradient((4,), 1)
    gradients = [weights[0].grad.clone(), weights[1].grad.clone()]
    norm = gradient_norm(weights)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(weights, 1.0)), rel=1e-6)
    for weight, gradient in zip(weights, gradients, strict=False):
        assert weight.grad is not None
        assert torch.allclose(weight.grad, gradient * clipping(norm, 1.0), atol=1e-7)
    assert clipping(norm, 0.0) == clipping(norm, 2 * norm) == 1.0
    assert gradient_norm(weights[2:]) == 0.0


@pytest.mark.parametrize("which", kernels.CHOICES)
def test_the_gradient_norm_is_that_of_float64_whatever_the_sizes_and_sparse_or_not(which: str) -> None:
    kernels.select(which)
    weights = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 20000), (4096,), (1,), (50, 7))]
    for number, weight in enumerate(weights[:3]):
        weight.grad = _gradient(tuple(weight.shape), number)
    rows = torch.tensor([[3, 40, 3]])
    weights[3].grad = torch.sparse_coo_tensor(rows, _gradient((3, 7), 3), (50, 7), check_invariants=True)
    exact = [weight.grad.to_dense().double() for weight in weights if weight.grad is not None]
    assert gradient_norm(weights) == pytest.approx(float(sum(g.square().sum() for g in exact)) ** 0.5, rel=1e-6)


def test_a_loaded_state_is_where_its_parameter_is_step_counts_too() -> None:
    """On CUDA fused AdamW fails with a step count on the CPU; ``meta`` stands for another device here."""
    weight = nn.Parameter(torch.zeros(3, 2, device="meta"))
    optimizer = AdamW([weight], lr=1.0)
    stored = {"w.step": torch.tensor(7.0), "w.exp_avg": torch.zeros(3, 2), "w.exp_avg_sq": torch.zeros(3, 2)}
    load_state_tensors(optimizer, stored, {"w": weight})
    assert {value.device.type for value in optimizer.state[weight].values()} == {"meta"}


def test_biases_and_layer_norms_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, plain = parameter_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]  # type: ignore[attr-defined]
    assert len(plain["params"]) == 3  # type: ignore[arg-type]
    assert plain["weight_decay"] == 0.0
