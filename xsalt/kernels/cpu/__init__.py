"""The fused kernels for the CPU, built from ``kernels.cpp`` by setup.py; called through ctypes with raw pointers.

One source, four builds: for AVX-512 with and without products of bfloat16, for AVX2, and for any processor.
``library()`` loads the best that is there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xsalt import kernels
from xsalt.kernels.philox import SiteKey

BUILDS = {"AVX512": ("avx512", "avx2", "base"), "AVX2": ("avx2", "base")}
"""What PyTorch calls the processor's capability -> the builds that run there, best first."""


class _Key(Structure):
    _fields_ = (("k0", c_uint32), ("k1", c_uint32), ("threshold", c_uint32), ("scale", c_float))


class _Embed(Structure):
    _fields_ = (
        ("table", c_void_p),
        ("table_type", c_int64),
        ("T", c_int64),
        ("D", c_int64),
        ("row", c_void_p),
        ("other", c_void_p),
        ("r", c_void_p),
        ("r_row", c_void_p),
        ("r_width", c_int64),
        ("position_table", c_void_p),
        ("position", c_void_p),
        ("type_table", c_void_p),
        ("type", c_void_p),
        ("gamma", c_void_p),
        ("beta", c_void_p),
        ("eps", c_float),
        ("token", c_void_p),
        ("key", _Key),
        ("mean", c_void_p),
        ("rstd", c_void_p),
    )


class _EmbedGrads(Structure):
    _fields_ = (
        ("slot", c_void_p),
        ("other_slot", c_void_p),
        ("unwritten", c_int64),
        *((name, c_void_p) for name in ("table", "position", "type", "gamma", "beta")),
    )


class _Norm(Structure):
    _fields_ = (
        ("T", c_int64),
        ("D", c_int64),
        ("gamma", c_void_p),
        ("beta", c_void_p),
        ("eps", c_float),
        ("token", c_void_p),
        ("keyed", c_int64),
        ("key", _Key),
        ("sum", c_void_p),
        ("mean", c_void_p),
        ("rstd", c_void_p),
    )


class _Attention(Structure):
    _fields_ = (
        ("B", c_int64),
        ("H", c_int64),
        ("S", c_int64),
        ("d", c_int64),
        ("offset", c_void_p),
        ("scale", c_float),
        ("token", c_void_p),
        ("key", _Key),
        ("first_only", c_int64),
    )


class _Adam(Structure):
    _fields_ = tuple((name, c_float) for name in ("beta1", "beta2", "eps", "scale"))


_SIGNATURES = {
    "xsalt_embed_forward": (POINTER(_Embed), c_int64, c_void_p),
    "xsalt_embed_backward": (POINTER(_Embed), c_int64, c_void_p, POINTER(_EmbedGrads)),
    "xsalt_distinct": (c_int64, c_int64, c_void_p, c_void_p, c_void_p),
    "xsalt_norm_forward": (POINTER(_Norm), c_void_p, c_int64, *(c_void_p,) * 4),
    "xsalt_norm_backward": (POINTER(_Norm), *(c_void_p,) * 3, c_int64, *(c_void_p,) * 4),
    "xsalt_attention_forward": (POINTER(_Attention), c_int64, c_void_p, c_void_p, c_void_p),
    "xsalt_attention_backward": (POINTER(_Attention), c_int64, c_void_p, c_void_p, c_void_p, c_void_p),
    "xsalt_gelu_forward": (c_int64, c_int64, c_int64, *(c_void_p,) * 3),
    "xsalt_gelu_backward": (c_int64, c_int64, c_int64, *(c_void_p,) * 4),
    "xsalt_adamw": (c_int64, c_void_p, c_void_p, POINTER(_Adam)),
    "xsalt_sum_of_squares": (c_int64, c_void_p),
    "xsalt_column_sums": (c_int64, c_int64, c_int64, c_void_p, c_void_p),
    "xsalt_mask": (c_int64, c_int64, c_int64, c_void_p, _Key, c_void_p),
}
_RETURNS = {"xsalt_distinct": c_int64, "xsalt_sum_of_squares": c_double}


def load(build: str) -> ctypes.CDLL | str:
    """The library of a build, or why it cannot be used."""
    for path in sorted(Path(__file__).parent.glob(f"_{build}.*")):
        if path.suffix not in (".so", ".pyd", ".dylib"):
            continue
        try:  # OpenMP's functions are those of the library that PyTorch has loaded: one set of threads for both
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            return f"{path.name} does not load: {error}"
        for name, arguments in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, _RETURNS.get(name)
        return loaded
    return "not built: no C++ compiler when xsalt was installed"


def has_feature(*names: str) -> bool:
    """Whether the processor has one of these features, named as by ``torch.cpu.get_capabilities``."""
    if hasattr(torch.cpu, "get_capabilities"):
        return any(torch.cpu.get_capabilities().get(name, False) for name in names)
    return "avx512_bf16" in names and bool(torch.cpu._is_avx512_bf16_supported())  # before torch 2.10


def runnable_builds() -> tuple[str, ...]:
    """Names of the builds whose instructions this processor has, best first."""
    builds = BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("base",))
    return ("avx512bf16", *builds) if builds[0] == "avx512" and has_feature("avx512_bf16") else builds


@cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """The loaded library and the name of its build, or None and why there is none."""
    reason = ""
    for build in runnable_builds():
        loaded = load(build)
        if not isinstance(loaded, str):
            return loaded, build
        reason = reason or loaded
    return None, reason


def takes(tensor: Tensor) -> bool:
    """Whether these kernels work on such a tensor, and are chosen and there."""
    fits = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16)
    return fits and kernels.selected() == "auto" and library()[0] is not None


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _type(tensor: Tensor) -> int:
    return {torch.float32: 0, torch.bfloat16: 1}[tensor.dtype]


def _key(key: SiteKey | None) -> _Key:
    return _Key(0, 0, 0, 1.0) if key is None else _Key(key.k0, key.k1, key.threshold, key.scale)


def _token(key: SiteKey | None) -> int | None:
    return None if key is None else key.token_T3.data_ptr()


def _keyed(key: SiteKey | None) -> int:
    return 0 if key is None else len(key.token_T3)


def _lib() -> ctypes.CDLL:
    loaded, reason = library()
    if loaded is None:
        raise RuntimeError(f"the kernels for the CPU cannot be used: {reason}")
    return loaded


def keep_mask(key: SiteKey, width: int, heads: int = 0) -> Tensor:
    """The masks as ``philox.keep_hidden`` (heads = 0) and ``philox.keep_attention`` define them."""
    T = len(key.token_T3)
    keep = torch.empty((heads, T, width) if heads else (T, width), dtype=torch.bool)
    _lib().xsalt_mask(T, width, heads, key.token_T3.data_ptr(), _key(key), keep.data_ptr())
    return keep


class EmbedCall:
    """The arguments that the forward and the backward pass of the embedding share.

    ``inputs``: table, row, other, r, row of r, position table, position, type table, type, gamma, beta as
    ``xsalt::embed`` takes them, all contiguous.
    """

    def __init__(
        self, inputs: Sequence[Tensor | None], eps: float, key: SiteKey | None, mean_T: Tensor, rstd_T: Tensor
    ) -> None:
        table, row, other, r, r_row, position_table, position, type_table, type_, gamma, beta = inputs
        assert table is not None
        assert row is not None
        self.arguments = _Embed(
            _at(table),
            _type(table),
            len(row),
            table.shape[1],
            _at(row),
            _at(other),
            _at(r),
            _at(r_row),
            1 if r is None else r.shape[1],
            _at(position_table),
            _at(position),
            _at(type_table),
            _at(type_),
            _at(gamma),
            _at(beta),
            eps,
            _token(key),
            _key(key),
            _at(mean_T),
            _at(rstd_T),
        )

    def forward(self, out_TD: Tensor) -> None:
        """Fills ``out_TD`` and the mean and 1 / standard deviation of each token."""
        _lib().xsalt_embed_forward(ctypes.byref(self.arguments), _type(out_TD), out_TD.data_ptr())

    def backward(
        self,
        grad_TD: Tensor,
        slot_T: Tensor,
        other_slot_T: Tensor | None,
        unwritten: int,
        table: Tensor,
        position: Tensor,
        type_: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
    ) -> None:
        """Adds the gradients to ``table`` (at the slots), ``position``, ``type_``, ``gamma`` and ``beta``, float32.

        ``unwritten``: 0, or the number of slots if ``table`` is not zeros but memory that the slots touched cover.
        """
        tensors = (table, position, type_, gamma, beta)
        grads = _EmbedGrads(_at(slot_T), _at(other_slot_T), unwritten, *(_at(t) for t in tensors))
        _lib().xsalt_embed_backward(
            ctypes.byref(self.arguments), _type(grad_TD), grad_TD.data_ptr(), ctypes.byref(grads)
        )


def distinct(id_N: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """``torch.unique(id_N, return_inverse=True)`` of int64 ids in 0..rows - 1, without sorting."""
    id_N = id_N.contiguous()
    distinct_U, place_N = torch.empty(min(len(id_N), rows), dtype=torch.int64), torch.empty_like(id_N)
    count = _lib().xsalt_distinct(len(id_N), rows, _at(id_N), _at(distinct_U), _at(place_N))
    return distinct_U[:count], place_N


def uninitialised(*wanted: tuple[int, int, torch.dtype]) -> list[Tensor]:
    """Matrices of these numbers of rows and columns in one allocation: the allocator is slow at many large ones."""
    starts, size = [], 0
    for rows, columns, dtype in wanted:
        starts.append(size)
        size += -(-rows * columns * dtype.itemsize // 64) * 64
    memory = torch.empty(size, dtype=torch.uint8)
    return [
        memory[start : start + rows * columns * dtype.itemsize].view(dtype).view(rows, columns)
        for start, (rows, columns, dtype) in zip(starts, wanted, strict=True)
    ]


class NormCall:
    """LayerNorm(residual + dropout(y + bias)) of R rows: the arguments that both passes share.

    ``sum_RD``, ``moments_2R`` (float32): what the forward pass leaves there for the backward pass.
    """

    def __init__(
        self, gamma_D: Tensor, beta_D: Tensor, eps: float, key: SiteKey | None, sum_RD: Tensor, moments_2R: Tensor
    ) -> None:
        self.alive = (gamma_D, beta_D, key, sum_RD, moments_2R)  # the arguments point into them
        R, D = sum_RD.shape
        keyed = (_token(key), _keyed(key), _key(key))
        places = (_at(sum_RD), _at(moments_2R), _at(moments_2R[1]))
        self.arguments = _Norm(R, D, _at(gamma_D), _at(beta_D), eps, *keyed, *places)

    def forward(
        self, residual_RD: Tensor, y_RD: Tensor, bias_D: Tensor, out_RD: Tensor, out16_RD: Tensor | None
    ) -> None:
        """Fills ``out_RD`` (float32) and, in bfloat16, ``out16_RD``."""
        y = (_type(y_RD), _at(y_RD), _at(bias_D))
        _lib().xsalt_norm_forward(ctypes.byref(self.arguments), _at(residual_RD), *y, _at(out_RD), _at(out16_RD))

    def backward(
        self, grad_RD: Tensor | None, grad16_RD: Tensor | None, grad_residual_RD: Tensor, grad_y_RD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fills the gradients of residual and y from those of the two outputs, either of which may be None.

        Returns the gradients of gamma, beta and the bias.
        """
        gamma_D, beta_D, bias_D = grads = torch.zeros(3, self.arguments.D).unbind(0)
        _lib().xsalt_norm_backward(
            ctypes.byref(self.arguments),
            _at(grad_RD),
            _at(grad16_RD),
            _at(grad_residual_RD),
            _type(grad_y_RD),
            _at(grad_y_RD),
            *(_at(grad) for grad in grads),
        )
        return gamma_D, beta_D, bias_D


def column_sums(x_TF: Tensor) -> Tensor:
    """The sum of the rows, float32: the gradient of a bias."""
    sum_F = torch.empty(x_TF.shape[1])
    _lib().xsalt_column_sums(*x_TF.shape, _type(x_TF), _at(x_TF), _at(sum_F))
    return sum_F


class AttentionCall:
    """Attention of sequences ``offset_B1`` of packed tokens; rows after the last token, if there are, are zeros.

    ``first_only``: of the first token of each sequence alone, so that there is a row of context for each sequence.
    """

    def __init__(
        self,
        offset_B1: Tensor,
        heads: int,
        longest: int,
        head_width: int,
        key: SiteKey | None,
        first_only: bool = False,
    ) -> None:
        self.tokens = int(offset_B1[-1])
        self.alive = (offset_B1, key)  # the arguments point into them
        sizes = (len(offset_B1) - 1, heads, longest, head_width)
        self.first_only = first_only
        self.arguments = _Attention(*sizes, _at(offset_B1), head_width**-0.5, _token(key), _key(key), first_only)

    def forward(self, qkv_TX: Tensor, context_RX: Tensor, norm_HR: Tensor) -> None:
        """Fills the context, (T or B, H * d), and the logarithm of each softmax's denominator, float32.

        ``norm_HR``: (H, tokens or B).
        """
        used = self.arguments.B if self.first_only else self.tokens
        context_RX[used:] = 0
        _lib().xsalt_attention_forward(
            ctypes.byref(self.arguments), _type(qkv_TX), _at(qkv_TX), _at(context_RX), _at(norm_HR)
        )

    def backward(self, qkv_TX: Tensor, norm_HR: Tensor, grad_RX: Tensor, grad_qkv_TX: Tensor) -> None:
        """Fills the gradient of ``qkv_TX`` from that of the context."""
        grad_qkv_TX[self.tokens :] = 0
        _lib().xsalt_attention_backward(
            ctypes.byref(self.arguments), _type(qkv_TX), _at(qkv_TX), _at(norm_HR), _at(grad_RX), _at(grad_qkv_TX)
        )


def gelu(x_TF: Tensor, bias_F: Tensor, out_TF: Tensor) -> None:
    """``out_TF`` = z * Phi(z) of z = x + bias."""
    _lib().xsalt_gelu_forward(*x_TF.shape, _type(x_TF), _at(x_TF), _at(bias_F), _at(out_TF))


def gelu_backward(x_TF: Tensor, bias_F: Tensor, grad_TF: Tensor, out_TF: Tensor) -> None:
    """Makes ``grad_TF``, the gradient of gelu(x + bias), that of x in place; ``out_TF`` = gelu(x + bias)."""
    _lib().xsalt_gelu_backward(*x_TF.shape, _type(x_TF), _at(x_TF), _at(bias_F), _at(grad_TF), _at(out_TF))


def _run(tensor: Tensor) -> Tensor:
    """The values of a dense tensor, or of a coalesced sparse one, one after the other."""
    return (tensor.values() if tensor.is_sparse else tensor).contiguous()


def adamw_(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    updates: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    scale: float,
) -> None:
    """Updates float32 parameters in place, as ``torch.optim.AdamW`` does.

    Args:
        grads: dense, or for (rows, D) parameters sparse and coalesced; multiplied with ``scale``.
        updates: the number of this update, from 1, for each parameter.
    """
    (beta1, beta2), t_N = betas, np.array(updates)
    runs = [_run(grad) for grad in grads]
    rows = [grad.indices()[0].contiguous() if grad.is_sparse else None for grad in grads]
    table = [
        (
            *(t.data_ptr() for t in (x, run, first, second)),
            *((0, 0, 1, x.numel()) if touched is None else (touched.data_ptr(), len(touched), len(x), x.shape[1])),
        )
        for x, run, first, second, touched in zip(parameters, runs, exp_avgs, exp_avg_sqs, rows, strict=True)
    ]
    tensor_N8 = np.array(table, dtype=np.int64)
    keep = np.full(len(table), 1.0 - lr * weight_decay)
    step_N3 = np.stack([keep, lr / (1.0 - beta1**t_N), (1.0 - beta2**t_N) ** 0.5], 1).astype(np.float32)
    settings = _Adam(beta1, beta2, eps, scale)
    _lib().xsalt_adamw(len(table), tensor_N8.ctypes.data, step_N3.ctypes.data, ctypes.byref(settings))


def sum_of_squares(tensors: Sequence[Tensor]) -> float:
    """Of all values of float32 tensors; sparse ones are coalesced."""
    runs = [_run(tensor) for tensor in tensors]
    run_N2 = np.array([(run.data_ptr(), run.numel()) for run in runs], dtype=np.int64)
    return float(_lib().xsalt_sum_of_squares(len(runs), run_N2.ctypes.data))
