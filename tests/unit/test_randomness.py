"""Random numbers are pure functions of their key."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from xsalt.randomness import permutation, philox, uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that the authors of Philox publish with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == expected


def test_a_draw_does_not_depend_on_what_is_drawn_beside_it() -> None:
    together = uniform(7, 3, "r", np.arange(50)[:, None], 0, np.arange(20))
    for uid in (0, 17, 49):
        np.testing.assert_array_equal(uniform(7, 3, "r", uid, 0, np.arange(20)), together[uid])
    assert uniform(7, 3, "r", 17, 0, 5) == together[17, 5]


@pytest.mark.parametrize(
    "other", [dict(seed=8), dict(epoch=4), dict(purpose="s"), dict(uid=np.arange(1000) + 2**32), dict(view=1)]
)
def test_every_part_of_the_key_gives_an_independent_stream(other: dict[str, object]) -> None:
    key: dict[str, object] = dict(seed=7, epoch=3, purpose="r", uid=np.arange(1000), view=0, index=0)
    a, b = uniform(**key), uniform(**(key | other))  # type: ignore[arg-type]
    assert abs(float(np.corrcoef(a, b)[0, 1])) < 0.15
    assert not np.array_equal(a, b)


def test_draws_are_uniform_in_zero_to_one() -> None:
    draws = uniform(1, 0, "r", np.arange(20000))
    assert draws.dtype == np.float32
    assert draws.min() >= 0 and draws.max() < 1
    assert scipy.stats.kstest(draws, "uniform").pvalue > 1e-3


def test_a_permutation_has_each_number_once_and_depends_on_seed_and_epoch() -> None:
    a = permutation(1, 0, "p", 1000)
    np.testing.assert_array_equal(np.sort(a), np.arange(1000))
    np.testing.assert_array_equal(a, permutation(1, 0, "p", 1000))
    assert not np.array_equal(a, permutation(1, 1, "p", 1000))
    assert not np.array_equal(a, permutation(2, 0, "p", 1000))
    assert len(permutation(1, 0, "p", 0)) == 0
