"""AdamW with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), none on biases and LayerNorm."""

from __future__ import annotations

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices and tables decay, biases and LayerNorm weights (every one-dimensional parameter) do not."""
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """The fused implementation, one pass over the parameters."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


def state_tensors(optimizer: torch.optim.AdamW, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors: ``NAME.exp_avg``, ``NAME.exp_avg_sq``, ``NAME.step``.

    Args:
        names: ``id(parameter)`` -> name.
    """
    return {
        f"{names[id(parameter)]}.{key}": value.detach().cpu()
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
        on = parameter.device if part != "step" or value.device.type != "cpu" else torch.device("cpu")
        optimizer.state[parameter][part] = value.clone().to(on)
