"""The fast kernels equal the reference: masks bit for bit, values and gradients to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from xsalt import kernels
from xsalt.batch import Layout
from xsalt.kernels import cpu, reference
from xsalt.kernels.embedding import embed
from xsalt.kernels.philox import SiteKey, keep_attention, keep_hidden, token_keys

needs_build = pytest.mark.skipif(cpu.library()[0] is None, reason=f"kernels for the CPU: {cpu.library()[1]}")


@pytest.fixture(autouse=True)
def _auto() -> Iterator[None]:
    yield
    kernels.select("auto")


def site(lengths: tuple[int, ...], p: float) -> SiteKey | None:
    layout = Layout(np.array(lengths, dtype=np.int64))
    uid_B = np.arange(len(lengths)) * 1000003
    keys = token_keys(uid_B, uid_B * 0, layout.sequence_T.numpy(), layout.position_T.numpy())
    return SiteKey(0x9ABCDEF0, 0x13579BDF, round(p * 65536), torch.from_numpy(keys)) if p else None


def both(run: Callable[[], list[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """(fast, reference) results one after the other."""
    results = []
    for name in kernels.CHOICES:
        kernels.select(name)
        results.append(run())
    return zip(*results, strict=True)


def assert_near(fast: Tensor, plain: Tensor, bound: float) -> None:
    assert fast.shape == plain.shape
    assert fast.dtype == plain.dtype
    if plain.numel():
        assert float((fast - plain).abs().max() / plain.abs().max().clamp(min=1e-3)) <= bound


@needs_build
@pytest.mark.parametrize("build", cpu.runnable_builds())
def test_every_build_that_runs_here_draws_the_same_masks(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = cpu.load(build)
    assert not isinstance(loaded, str), loaded
    monkeypatch.setattr(cpu, "library", lambda: (loaded, build))
    key = site((5, 130, 1), 0.3)
    assert key is not None
    for width in (1, 17, 384):
        assert torch.equal(cpu.keep_mask(key, width), keep_hidden(key, width))
    assert torch.equal(cpu.keep_mask(key, 33, 12), keep_attention(key, 12, 33))


@needs_build
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9999])
def test_masks_are_the_reference_bit_by_bit(p: float) -> None:
    key = site((5, 130, 1), p)
    assert key is not None
    for width in (1, 7, 8, 128, 129, 384):
        assert torch.equal(cpu.keep_mask(key, width), keep_hidden(key, width))
    for heads, keys in ((1, 3), (8, 16), (12, 130), (17, 33)):
        assert torch.equal(cpu.keep_mask(key, keys, heads), keep_attention(key, heads, keys))


def embedding_inputs(
    lengths: tuple[int, ...], D: int, mode: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Leaves (table, positions, types, gamma, beta) and the rest of the arguments of ``embed``."""
    generator = torch.Generator().manual_seed(seed)
    layout = Layout(np.array(lengths, dtype=np.int64))
    T, A = layout.tokens, 50

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    leaves = [normal(A, D).to(dtype), normal(200, D), normal(2, D), 1 + 0.1 * normal(D), 0.1 * normal(D)]
    rest: dict[str, Tensor | None] = {
        "row_T": torch.randint(A, (T,), generator=generator),
        "position_T": layout.position_T,
        "type_T": torch.randint(2, (T,), generator=generator),
    }
    if mode != "plain":
        other = torch.randint(A, (T,), generator=generator)
        rest["other_T"] = torch.where(torch.rand(T, generator=generator) < 0.4, rest["row_T"], other)
        shape = {"dimension": (len(lengths), D), "instance": (len(lengths), 1), "token": (T, 1)}[mode]
        rest["r"] = torch.rand(shape, generator=generator)
        rest["r_row_T"] = None if mode == "token" else layout.sequence_T
    return leaves, rest


def run_embed(
    leaves: list[Tensor], rest: dict[str, Tensor | None], key: SiteKey | None, sparse: bool = False
) -> list[Tensor]:
    inputs = [leaf.clone().requires_grad_() for leaf in leaves]
    table, positions, types, gamma, beta = inputs
    mix = {name: rest[name] for name in ("other_T", "r", "r_row_T") if name in rest}
    out = embed(
        table, rest["row_T"], positions, rest["position_T"], types, rest["type_T"], gamma, beta, 1e-12, key,
        sparse=sparse, **mix,
    )  # type: ignore[arg-type]  # fmt: skip
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out).cos()
    (out * weights).sum().backward()
    grads = [leaf.grad for leaf in inputs]
    return [out.detach(), *(grad.to_dense() if grad.is_sparse else grad for grad in grads if grad is not None)]


LENGTHS = [(3, 5, 4), (1,), (64, 7, 100, 1), (0, 3, 0), ()]


@needs_build
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("D", [384, 33, 7])
@pytest.mark.parametrize("mode", ["plain", "dimension", "instance", "token"])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_embedding_and_its_gradients_equal_the_reference(
    lengths: tuple[int, ...], D: int, mode: str, p: float, sparse: bool
) -> None:
    leaves, rest = embedding_inputs(lengths, D, mode)

    for fast, plain in both(lambda: run_embed(leaves, rest, site(lengths, p), sparse)):
        assert_near(fast, plain, 1e-5)
    out = next(both(lambda: run_embed(leaves, rest, site(lengths, p), sparse)))
    assert_near(out[0], out[1], 1e-6)


@needs_build
@pytest.mark.parametrize("mode", ["plain", "dimension"])
def test_a_bfloat16_table_is_read_as_it_is(mode: str) -> None:
    leaves, rest = embedding_inputs((9, 14), 96, mode, torch.bfloat16)
    for number, (fast, plain) in enumerate(both(lambda: run_embed(leaves, rest, site((9, 14), 0.1)))):
        assert_near(fast.float(), plain.float(), 1e-2 if number == 1 else 1e-5)  # the table's gradient is bfloat16


@pytest.mark.parametrize("mode", ["plain", "dimension", "token"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_of_the_embedding_are_those_of_finite_differences(mode: str, p: float) -> None:
    leaves, rest = embedding_inputs((2, 3), 5, mode)
    inputs = [leaf.double().requires_grad_() for leaf in leaves]
    mix = {name: value for name, value in rest.items() if name in ("other_T", "r", "r_row_T")}
    key = site((2, 3), p)

    def call(table: Tensor, positions: Tensor, types: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return embed(
            table, rest["row_T"], positions, rest["position_T"], types, rest["type_T"], gamma, beta, 1e-5, key, **mix
        )  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(call, inputs)


def assert_exact_at_both_ends(mode: str, p: float, dtype: torch.dtype = torch.float32) -> None:
    """r = 1 is the source, r = 0 the substitution, and a token that stays itself is itself: bit by bit, and so are
    their gradients but for the order of sums."""
    lengths = (3, 5, 12)
    leaves, rest = embedding_inputs(lengths, 40, mode, dtype)
    plain = {name: value for name, value in rest.items() if name not in ("other_T", "r", "r_row_T")}
    r = rest["r"]
    assert r is not None
    ends = [
        ({"r": torch.ones_like(r)}, plain),
        ({"r": torch.zeros_like(r)}, {**plain, "row_T": rest["other_T"]}),
        ({"other_T": rest["row_T"]}, plain),
    ]
    for changes, alone in ends:
        mixed, expected = (run_embed(leaves, of, site(lengths, p)) for of in ({**rest, **changes}, alone))
        assert torch.equal(mixed[0], expected[0]), changes.keys()
        for gradient, wanted in zip(mixed[1:], expected[1:], strict=True):
            assert_near(gradient.float(), wanted.float(), 1e-6 if dtype == torch.float32 else 1e-2)


MODES = ("dimension", "instance", "token")


@pytest.mark.parametrize("name", ["reference", *(cpu.runnable_builds() if cpu.library()[0] is not None else [])])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_mixing_is_exact_at_both_ends_and_for_tokens_that_stay(
    name: str, mode: str, p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "reference":
        kernels.select(name)
    else:
        loaded = cpu.load(name)
        assert not isinstance(loaded, str), loaded
        monkeypatch.setattr(cpu, "library", lambda: (loaded, name))
    assert_exact_at_both_ends(mode, p)
    if name != "reference":
        assert_exact_at_both_ends(mode, p, torch.bfloat16)


@needs_build
def test_the_operator_passes_opcheck_and_compiles_under_autocast() -> None:
    leaves, rest = embedding_inputs((4, 6), 16, "dimension")
    table, positions, types, gamma, beta = (leaf.requires_grad_() for leaf in leaves)
    key = site((4, 6), 0.1)
    assert key is not None
    arguments = (
        table, rest["row_T"], rest["other_T"], rest["r"], rest["r_row_T"], positions, rest["position_T"], types,
        rest["type_T"], gamma, beta, 1e-12, key.token_T3, key.k0, key.k1, key.threshold, False,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.xsalt.embed.default, arguments)
    compiled = torch.compile(lambda *a: torch.ops.xsalt.embed(*a)[0].square().sum(), backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        eager, fused = torch.ops.xsalt.embed(*arguments)[0].square().sum(), compiled(*arguments)
    assert torch.equal(eager, fused)
    fused.backward()
    assert table.grad is not None


@needs_build
def test_any_number_of_threads_gives_the_same_bits() -> None:
    leaves, rest = embedding_inputs((60, 80, 90), 384, "dimension")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run_embed(leaves, rest, site((60, 80, 90), 0.1)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_build
@pytest.mark.parametrize(("count", "rows"), [(0, 5), (1, 1), (1000, 63), (1000, 64), (1000, 65), (4096, 250_037)])
def test_distinct_ids_are_those_that_sorting_finds(count: int, rows: int) -> None:
    id_N = torch.randint(rows, (count,), generator=torch.Generator().manual_seed(0))
    for mine, sorted_ in zip(cpu.distinct(id_N, rows), torch.unique(id_N, return_inverse=True), strict=True):
        assert torch.equal(mine, sorted_)


def test_the_reference_can_be_asked_for() -> None:
    kernels.select("reference")
    assert kernels.selected() == "reference"
    with pytest.raises(ValueError, match="unknown kernels 'fast': known: auto, reference"):
        kernels.select("fast")
    assert reference.dropout(torch.ones(2, 3), None).sum() == 6
