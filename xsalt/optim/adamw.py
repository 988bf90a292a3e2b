"""AdamW with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), none on biases and LayerNorm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xsalt import kernels
from xsalt.distributed import sum_over_ranks
from xsalt.kernels import cpu
from xsalt.parallel import is_sharded, own_part, sharded_like, shared_part, whole


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW, with its state and its mathematics; on the CPU in one pass over memory.

    The pass scales the gradient as it reads it, and takes that of a table as the rows touched (a sparse tensor): rows
    without a gradient get the update that a zero gradient gives, and no table of zeros is filled, scaled and read.
    """

    def takes_sparse(self) -> bool:
        """Whether sparse gradients are updated with as they are; elsewhere they are made dense first."""
        return in_one_pass(p for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def step(self, closure: Any = None, *, scale: float = 1.0) -> None:  # type: ignore[override]
        """Updates the parameters with their gradients times ``scale``; ``closure`` is not supported.

        Of parameters that ranks share, each updates its own rows.
        """
        assert closure is None
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not self.takes_sparse():
            for p in parameters:
                p.grad = p.grad.to_dense() if p.grad.is_sparse else p.grad
            if scale != 1.0 and parameters:
                torch._foreach_mul_([own_part(p.grad) for p in parameters], scale)
            super().step()
            return
        for group in self.param_groups:
            updated = [p for p in group["params"] if p.grad is not None]
            if not updated:
                continue
            states = [self.state[p] for p in updated]
            for p, state in zip(updated, states, strict=True):
                if not state:
                    state["step"] = torch.tensor(0.0)
                    shared = shared_part(p)
                    state["exp_avg"] = torch.zeros_like(p) if shared is None else shared.exp_avg
                    state["exp_avg_sq"] = torch.zeros_like(p) if shared is None else shared.exp_avg_sq
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            parts = [_parts(p, state) for p, state in zip(updated, states, strict=True)]
            weights, exp_avgs, exp_avg_sqs = (list(tensors) for tensors in zip(*parts, strict=True))
            cpu.adamw_(
                weights,
                [_own_gradient(p) for p in updated],
                exp_avgs,
                exp_avg_sqs,
                torch.stack(steps).tolist(),
                lr=float(group["lr"]),
                weight_decay=group["weight_decay"],
                betas=group["betas"],
                eps=group["eps"],
                scale=scale,
            )


def in_one_pass(parameters: Iterable[Tensor]) -> bool:
    """Whether ``AdamW`` has one pass over memory for them."""
    fits = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
    return fits and kernels.selected() == "auto" and cpu.library()[0] is not None


def _parts(p: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What this rank updates of a parameter and its moments."""
    shared = shared_part(p)
    return (own_part(p), own_part(state["exp_avg"]), own_part(state["exp_avg_sq"])) if shared is None else shared.own


def _own_gradient(p: Tensor) -> Tensor:
    """The gradient of what this rank updates of a parameter."""
    grad, shared = p.grad, shared_part(p)
    assert grad is not None
    if not grad.is_sparse:
        return own_part(grad) if shared is None else grad[shared.rows]
    grad = grad.coalesce()
    if shared is None:
        return grad
    first, last = shared.rows.start, shared.rows.stop
    (row_N,) = grad.indices()
    begin, end = torch.searchsorted(row_N, torch.tensor([first, last])).tolist()
    places, values_ND = row_N[None, begin:end] - first, grad.values()[begin:end]
    return torch.sparse_coo_tensor(
        places, values_ND, (last - first, *grad.shape[1:]), is_coalesced=True, check_invariants=False
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices and tables decay, biases and LayerNorm weights (every one-dimensional parameter) do not.

    What is split over ranks has two groups more, as PyTorch's optimizers take no mixture.
    """
    groups: list[dict[str, object]] = []
    for sharded in (False, True):
        own = [p for p in model.parameters() if p.requires_grad and is_sharded(p) == sharded]
        if own or not sharded:
            groups.append({"params": [p for p in own if p.ndim >= 2], "weight_decay": weight_decay})
            groups.append({"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0})
    return groups


def make_adamw(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float) -> AdamW:
    """The optimizer of a run, with the groups of ``parameter_groups``."""
    return AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """2-norm of all gradients together; those of untouched rows of a sparse one are zero."""
    whole_ones: list[Tensor] = []
    parts: list[Tensor] = []
    for p in parameters:
        if p.grad is not None:
            if p.grad.is_sparse:
                p.grad = p.grad.coalesce()
            split = is_sharded(p.grad) or shared_part(p) is not None
            (parts if split else whole_ones).append(_own_gradient(p))
    if not parts:
        return _norm(whole_ones)
    (of_parts,) = sum_over_ranks([_norm(parts) ** 2])
    return math.sqrt(_norm(whole_ones) ** 2 + of_parts)


def _norm(grads: list[Tensor]) -> float:
    if not grads:
        return 0.0
    if all(grad.dtype == torch.float32 and cpu.takes(grad) for grad in grads):
        return math.sqrt(cpu.sum_of_squares(grads))
    return float(nn.utils.get_total_norm([grad.values() if grad.is_sparse else grad for grad in grads]))


def clipping(norm: float, most: float) -> float:
    """What gradients of this norm are scaled with so that it is ``most`` at most; 0 clips nothing."""
    return min(1.0, most / (norm + 1e-6)) if most else 1.0


def state_tensors(optimizer: torch.optim.AdamW, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """A copy of the optimizer's state as named tensors: ``NAME.exp_avg``, ``NAME.exp_avg_sq``, ``NAME.step``.

    Args:
        names: ``id(parameter)`` -> name.
    """
    return {
        f"{names[id(parameter)]}.{key}": whole(value.detach()).to("cpu", copy=True)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_state_tensors(
    optimizer: torch.optim.AdamW, tensors: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter]
) -> None:
    """The reverse of ``state_tensors``. Raises ``ValueError`` if a tensor fits no parameter."""
    for key, value in tensors.items():
        name, _, part = key.rpartition(".")
        parameter = parameters.get(name)
        if parameter is None or (part != "step" and value.shape != parameter.shape):
            raise ValueError(f"optimizer tensor {key!r} of shape {tuple(value.shape)} fits no parameter")
        placed = value.clone().to(parameter.device)
        shared = shared_part(parameter)
        if part != "step":
            placed = sharded_like(placed, parameter) if shared is None else getattr(shared, part).copy_(placed)
        optimizer.state[parameter][part] = placed
