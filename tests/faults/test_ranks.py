"""Faults that one rank of several sees are decided upon by all of them alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.distributed.ranks import launch, prepared
from tests.faults.runs import Faulty
from xsalt import distributed
from xsalt.registry import CRITERIONS
from xsalt.training.state import State


def skipping(data: Path, folder: Path) -> None:
    """Trains an epoch in which one example, of which one rank has all views, has no finite loss."""
    CRITERIONS.register("faulty")(Faulty)
    Faulty.bad = {5}
    keys = ["--criterion=faulty", "augmenter.codeswitch.threshold=1", "epochs=1", "log_every=1", "eval.every=1000"]
    trainer = prepared(data, folder / "run", *keys)
    state = trainer.fit(State())
    weights = {name: value.detach().numpy() for name, value in trainer.step.model.named_parameters()}
    np.savez(folder / f"{distributed.rank()}.npz", skipped=np.array(state.skipped_updates), **weights)


def test_an_update_that_one_rank_can_not_compute_is_skipped_by_all(data: Path, tmp_path: Path) -> None:
    launch(2, skipping, data, tmp_path)
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert int(first["skipped"]) == 1
    assert all(np.array_equal(first[name], second[name]) for name in first.files)
    assert all(np.isfinite(first[name]).all() for name in first.files)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("grad_norm" not in row for row in rows) == 1
