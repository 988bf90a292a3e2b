"""The same run on 1, 2, 3 and 4 ranks: real processes, gloo over loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.ranks import UPDATES, launch, work
from tests.tiny import write_nli

Arrays = dict[str, np.ndarray]
Seen = Callable[[str, int], list[Arrays]]
WORLDS = (1, 2, 3, 4)
TRAINED = [("updates", 2), ("updates", 4), ("updates-sockets", 2), ("updates-fsdp", 3)]
ENGINES = {"updates": "OneMachine", "updates-sockets": "Replicas", "updates-fsdp": "Shards"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Seen:
    """``seen("draws", 3)``: what each of three ranks left. 92 examples in batches of 10: the last has two."""
    data = write_nli(tmp_path_factory.mktemp("data"), train=92, dev=9)
    folder = tmp_path_factory.mktemp("seen")
    for ranks in WORLDS:
        launch(ranks, work, folder, data)

    def read(name: str, ranks: int) -> list[Arrays]:
        return [dict(np.load(folder / f"{name}-{ranks}-{rank}.npz")) for rank in range(ranks)]

    return read


def is_sequence(key: str) -> bool:
    return key.count("/") == 5


@pytest.mark.parametrize("ranks", WORLDS[1:])
def test_all_ranks_together_draw_what_one_process_draws(seen: Seen, ranks: int) -> None:
    (alone,) = seen("draws", 1)
    expected = {key: value for key, value in alone.items() if is_sequence(key)}
    assert len({key.rpartition("/")[0] for key in expected}) == 2 * 92 * 4, "two epochs, two views and a copy of each"
    assert any(
        (value != expected[key.replace("/other", "/ids")]).any() for key, value in expected.items() if "/o" in key
    )
    found: Arrays = {}
    for own in seen("draws", ranks):
        sequences = {key: value for key, value in own.items() if is_sequence(key)}
        assert not found.keys() & sequences.keys(), "a sequence is on one rank only"
        found |= sequences
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [("gradients", 2), ("gradients", 3), ("gradients", 4), ("little", 4), ("gradients-fsdp", 3)],
)
def test_gradients_of_one_update_are_those_of_one_process(seen: Seen, name: str, ranks: int) -> None:
    (alone,) = seen(name.removesuffix("-fsdp"), 1)
    for own in seen(name, ranks):
        assert own.keys() == alone.keys(), "a gradient is there if any rank has one, and only then"
        for key, value in alone.items():
            assert np.abs(own[key] - value).max() <= 1e-12 * np.abs(value).max(), key


def test_the_cases_hold_what_makes_ranks_differ(seen: Seen) -> None:
    (alone,) = seen("gradients", 1)
    assert {key for key in alone if key.startswith("count/")} == {
        "count/cross_entropy",
        "count/consistency",
        "count/target_language_mlm",
    }
    assert len({int(own["0/0/tokens"][0]) for own in seen("draws", 3)}) > 1
    (little,) = seen("little", 1)
    assert 0 < little["count/target_language_mlm"] < 4, "fewer than ranks"


@pytest.mark.parametrize(("name", "ranks"), TRAINED)
def test_fifty_updates_with_dropout_end_where_one_process_ends(seen: Seen, name: str, ranks: int) -> None:
    """Key biases apart: their exact gradient is zero, and Adam turns rounding into steps."""
    (alone,) = seen("updates", 1)
    own = seen(name, ranks)[0]
    names = [key.removeprefix("before/") for key in alone if key.startswith("before/")]
    moved = difference = 0.0
    for name in names:
        step, other = alone[f"after/{name}"] - alone[f"before/{name}"], own[f"after/{name}"] - own[f"before/{name}"]
        assert np.array_equal(alone[f"before/{name}"], own[f"before/{name}"])
        if name.endswith("qkv.bias"):
            D = len(step) // 3
            step[D : 2 * D] = other[D : 2 * D] = 0.0
        moved += float((step.astype(np.float64) ** 2).sum())
        difference += float(((step - other).astype(np.float64) ** 2).sum())
    assert np.sqrt(moved) > 0.01 * UPDATES
    assert np.sqrt(difference) <= 1e-4 * np.sqrt(moved)
    np.testing.assert_allclose(own["logits"], alone["logits"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("name", "ranks"), TRAINED)
def test_all_ranks_hold_the_same_bits_after_fifty_updates(seen: Seen, name: str, ranks: int) -> None:
    first, *others = seen(name, ranks)
    assert any(key.startswith("exp_avg/embeddings.word") for key in first)
    assert first["engine"] == ENGINES[name], "ranks of one machine share memory where they can"
    for other in others:
        assert other.keys() == first.keys()
        assert all(np.array_equal(other[key], first[key]) for key in first)
