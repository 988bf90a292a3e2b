"""The Triton kernels equal the reference: compiled on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.kernels.gpu import placed
from tests.unit.kernels.test_cpu import (
    LENGTHS,
    MODES,
    assert_exact_at_both_ends,
    assert_near,
    embedding_inputs,
    run_embed,
    site,
)
from xsalt import kernels
from xsalt.kernels.philox import SiteKey

pytest.importorskip("triton", reason="no triton: pip install triton")

from xsalt.kernels.triton.philox import arguments


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends the operator to the Triton kernels, wherever the tensors are."""
    monkeypatch.setattr("xsalt.kernels.embedding._kernels_for", lambda weight_AD: kernels_in_use[0])


kernels_in_use = ["triton"]


def both(*arguments: object) -> list[tuple[Tensor, Tensor]]:
    results = []
    for name in ("triton", "reference"):
        kernels_in_use[0] = name
        results.append(run_embed(*(placed(argument) for argument in arguments)))  # type: ignore[arg-type]
    return list(zip(*results, strict=True))


@pytest.mark.parametrize("lengths", [(3, 5, 4), (0, 3, 0), ()])
@pytest.mark.parametrize("D", [384, 33])
@pytest.mark.parametrize("mode", ["plain", "dimension", "instance", "token"])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_the_embedding_and_its_gradients_equal_the_reference(
    lengths: tuple[int, ...], D: int, mode: str, p: float
) -> None:
    assert lengths in LENGTHS
    leaves, rest = embedding_inputs(lengths, D, mode)
    for number, (fast, plain) in enumerate(both(leaves, rest, site(lengths, p))):
        assert_near(fast, plain, 1e-6 if number == 0 else 1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_mixing_is_exact_at_both_ends_and_for_tokens_that_stay(mode: str, p: float) -> None:
    kernels_in_use[0] = "triton"
    assert_exact_at_both_ends(mode, p)


def test_the_masks_are_the_reference_bit_by_bit() -> None:
    """Kept values are never 0 here, so the zeros of the output are those of the mask."""
    leaves, rest = embedding_inputs((12, 9), 300, "plain")
    out = both(leaves, rest, site((12, 9), 0.3))[0]
    assert torch.equal(out[0] == 0, out[1] == 0)
    assert 0.25 < float((out[0] == 0).float().mean()) < 0.35


def test_a_gradient_of_touched_rows_alone() -> None:
    leaves, rest = embedding_inputs((6, 9), 16, "dimension")
    for fast, plain in both(leaves, rest, site((6, 9), 0.1), True):
        assert_near(fast, plain, 1e-5)


def test_tokens_that_one_program_takes_together_have_the_gradients_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xsalt.kernels.triton.embedding.PROGRAMS", 3)
    leaves, rest = embedding_inputs((6, 9, 1), 33, "dimension")
    rest["type_T"] = torch.tensor([0] * 4 + [1] * 2 + [0] * 10)
    for fast, plain in both(leaves, rest, site((6, 9, 1), 0.1)):
        assert_near(fast, plain, 1e-5)


def test_keys_of_any_32_bits_have_one_type() -> None:
    """Else a run would compile the kernels anew for large keys, small ones, even ones."""
    first = SiteKey(0xFFFFFFFF, 0x80000000, 1, torch.zeros(1, 3, dtype=torch.int32))
    _, k0, k1, *_ = arguments(first, torch.zeros(1))
    assert (k0, k1) == (-1, -(1 << 31))


def test_a_gpu_takes_triton_where_it_is_installed() -> None:
    assert kernels.triton_or_reference(torch.device("cuda")) == "triton"
    assert kernels.triton_or_reference(torch.device("meta")) == "reference"
