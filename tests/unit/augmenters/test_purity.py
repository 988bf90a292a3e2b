"""What is drawn for an example is a function of (seed, epoch, example): never of the batch around it, its order, who
draws it or what was drawn before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.augmenters.conftest import EXAMPLES, LENGTH
from xsalt.augmenters.codeswitch import CodeSwitch, CodeSwitchConfig
from xsalt.augmenters.mixup import Mixup, MixupConfig
from xsalt.batch import Batch
from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import SubstitutionTable
from xsalt.protocols import Needs

Make = Callable[..., Needs]
Found = dict[tuple[int, int], tuple[Any, ...]]

SWITCHING = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from([0.0, 0.3]),
        "ratio": st.sampled_from([0.5, 1.0]),
        "probability": st.sampled_from([0.6, 1.0]),
        "views": st.integers(1, 2),
        "clean": st.booleans(),
        "language_by": st.sampled_from(["instance", "token"]),
        "sampling": st.sampled_from(["uniform", "nearest"]),
        "choose": st.sampled_from(["best", "sample"]),
        "segments": st.sampled_from(["apart", "alike"]),
        "synonyms": st.sampled_from([0.0, 0.4]),
    }
)
MIXING = st.fixed_dictionaries(
    {
        "by": st.sampled_from(["dimension", "instance", "token"]),
        "alpha": st.sampled_from([1.0, 0.4]),
        "between": st.sampled_from(["source", "views"]),
        "where": st.sampled_from(["before", "after"]),
    }
)


def augmenters(made: Needs, switching: dict[str, Any], mixing: dict[str, Any], which: str) -> list[Any]:
    configs = {
        "codeswitch": CodeSwitchConfig(**switching),
        "mixup": MixupConfig(**(switching if which == "mixup" else {}), **mixing),
    }
    made.augmenters = {name: configs[name] for name in which.split(",")}
    classes: dict[str, Any] = {"codeswitch": CodeSwitch, "mixup": Mixup}
    return [classes[name](config, made) for name, config in made.augmenters.items()]


def draw(parts: Sequence[Any], dataset: Dataset, indices: np.ndarray, seed: int, epoch: int) -> Found:
    """(example, view) -> everything that was drawn for it."""
    batch = dataset.batch(indices, seed, epoch)
    for part in parts:
        batch = part.augment(batch)
    return by_sequence(batch)


def by_sequence(batch: Batch) -> Found:
    found: Found = {}
    T, mix = len(batch.ids_T), batch.mix
    for b in range(batch.layout.size):
        span = slice(int(batch.layout.offsets[b]), int(batch.layout.offsets[b + 1]))
        other_T, r = batch.ids_T, None
        if mix is not None:
            other_T = mix.other_ids_T
            r = mix.r[span] if mix.by_token else mix.r[b]
            assert len(mix.r) == (T if mix.by_token else batch.layout.size)
        sides = tuple(tensor[span].tolist() for tensor in (batch.ids_T, other_T, batch.language_T))
        mixed = None if r is None or sides[0] == sides[1] else r.flatten().tolist()  # r of a sequence that has no mix
        found[int(batch.uid_B[b]), int(batch.view_B[b])] = (*sides, mixed)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    switching=SWITCHING,
    mixing=MIXING,
    which=st.sampled_from(["codeswitch", "mixup", "codeswitch,mixup"]),
    order=st.permutations(range(12)),
    size=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 3),
)
def test_an_example_draws_the_same_in_batches_of_any_size_and_order(
    switching: dict[str, Any], mixing: dict[str, Any], which: str, order: list[int], size: int, seed: int, epoch: int,
    dataset: Dataset, needs: Make, rich: SubstitutionTable,
) -> None:  # fmt: skip
    parts = augmenters(needs(table=rich), switching, mixing, which)
    whole = draw(parts, dataset, np.arange(EXAMPLES), seed, epoch)
    for start in range(0, len(order), size):
        indices = np.array(order[start : start + size])
        found = draw(parts, dataset, indices, seed, epoch)
        assert found == {key: whole[key] for key in found}
        assert {uid for uid, _ in found} == set(indices.tolist())


@pytest.mark.parametrize("which", ["codeswitch", "mixup", "codeswitch,mixup"])
def test_threads_that_draw_at_once_draw_the_same(
    which: str, dataset: Dataset, needs: Make, rich: SubstitutionTable
) -> None:
    switching = {"choose": "sample", "synonyms": 0.3, "clean": True, "language_by": "token"}
    parts = augmenters(needs(table=rich), switching, {"between": "views"}, which)
    pieces = [np.arange(start, start + 4) for start in range(0, EXAMPLES, 4)] * 4
    alone = [draw(parts, dataset, piece, 3, 1) for piece in pieces]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda piece: draw(parts, dataset, piece, 3, 1), pieces)) == alone


@pytest.mark.parametrize(
    "key",
    [
        {"choose": "sample", "ratio": 1.0},
        {"synonyms": 0.5, "ratio": 1.0},
        {"segments": "alike", "choose": "sample"},
        {"language_by": "token"},
    ],
)
def test_epochs_seeds_and_views_draw_anew(
    key: dict[str, Any], dataset: Dataset, needs: Make, rich: SubstitutionTable
) -> None:
    codeswitch = augmenters(needs(table=rich), {"threshold": 0.0, "synonym_threshold": 0.0, **key}, {}, "codeswitch")[0]

    def ids(seed: int, epoch: int, view: int) -> torch.Tensor:
        batch = dataset.batch(np.arange(EXAMPLES), seed, epoch)
        return codeswitch.augment(batch.with_(view_B=batch.view_B + view)).ids_T.view(EXAMPLES, LENGTH)[:, 1:-1]

    base = ids(1, 0, 0)
    for other in (ids(2, 0, 0), ids(1, 1, 0), ids(1, 0, 1)):
        assert 0.1 < float((other != base).float().mean()) < 0.95
