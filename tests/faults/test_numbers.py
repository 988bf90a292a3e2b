"""Losses and gradients that are no finite number, and accuracy that stays at chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.faults.conftest import Train
from tests.faults.runs import Faulty, metrics, outcome, state
from xsalt.training.health import watch_learning
from xsalt.training.state import State


@pytest.mark.parametrize("gradient", [False, True], ids=["the loss", "the gradient alone"])
def test_an_update_without_finite_numbers_is_skipped_counted_and_its_examples_named(
    gradient: bool, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Faulty.bad, Faulty.gradient = {5}, gradient
    assert train(tmp_path, "batch.size=4", "batch.accumulate=3", "epochs=2") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "is skipped" in line]
    assert len(warned) == 2, "eight updates an epoch, each example once"
    names = warned[0].partition("; examples ")[2].partition(" (")[0].split(", ")
    assert len(names) == 4 and "5" in names, "those of the micro-batch, not of the whole update"
    rows = metrics(tmp_path)
    assert [row["skipped_updates"] for row in rows][-1] == state(tmp_path)["skipped_updates"] == 2
    assert json.loads((tmp_path / "results.json").read_text())["train"]["skipped_updates"] == 2
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert sum("grad_norm" not in row for row in rows) == 2
    lr = [row["lr"] for row in rows]
    assert np.allclose(lr[1:], lr[1] * np.arange(15, 0, -1) / 15), "the schedule goes on by updates, skipped ones too"
    optimizer = load_file(tmp_path / "checkpoints" / "last" / "optimizer.safetensors")
    assert {float(value) for name, value in optimizer.items() if name.endswith(".step")} == {14.0}
    model = load_file(tmp_path / "checkpoints" / "last" / "model.safetensors")
    assert all(np.isfinite(value).all() for value in (*model.values(), *optimizer.values()))


def test_after_as_many_as_may_be_skipped_the_run_stops_having_saved(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Faulty.bad = {5, 40, 70}
    run = tmp_path / "run"
    assert train(run, "optim.max_skipped=0", "batch.size=8", "checkpoint.every=1000") == 2
    err = capsys.readouterr().err
    last, stopped = err.strip().splitlines()[-1], state(run)["update"]
    assert "optim.max_skipped=0" in last and f"update {stopped}" in last and "Traceback" not in err
    assert state(run)["skipped_updates"] == 1
    assert train(run, "optim.max_skipped=6", "batch.size=8", "checkpoint.every=1000") == 0
    assert train(tmp_path / "whole", "optim.max_skipped=6", "batch.size=8", "checkpoint.every=1000") == 0
    whole, parts = outcome(tmp_path / "whole"), outcome(run)
    assert {key: parts[key] for key in whole} == whole


def test_training_that_learns_nothing_is_told_after_200_updates(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["optim.lr=1e-12", "epochs=36", "eval.every=1000", "checkpoint.every=1000", "log_every=10", "batch.size=16"]
    assert train(tmp_path, *keys) == 0
    err = capsys.readouterr().err
    warned = [line for line in err.splitlines() if "the training accuracy is at chance" in line]
    assert len(warned) == 1 and "after 200 updates" in warned[0] and "33.3 %" in warned[0]
    assert any("dev accuracy is at chance" in line for line in err.splitlines())


def test_training_that_learns_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    labels, state = np.repeat([0, 1, 2], 100), State()
    for update in range(50, 400, 50):
        state.update = update
        watch_learning(state, {"accuracy": [0.5 * 1600, 1600]}, "accuracy", 50, labels)
    assert state.learnt == [1600, 3200], "lines up to the first from update 200 on"
    assert capsys.readouterr().err == ""
