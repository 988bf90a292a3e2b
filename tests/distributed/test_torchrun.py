"""Runs under ``torchrun``: how they stop, fail, restart, and go on with another number of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.distributed.script import signal_after
from tests.tiny import TINY, write_nli
from xsalt.training.state import State
from xsalt_cli.train import main

UPDATES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nli(tmp_path_factory.mktemp("data"))


def words(data: Path, run: Path) -> list[str]:
    return ["--task=xnli", f"data.root={data}", f"run={run}", "epochs=2", "log_every=1", "optim.lr=1e-3", *TINY]


def torchrun(*arguments: str, options: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    return subprocess.run(
        [sys.executable, *command, "-m", "tests.distributed.script", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing interrupts."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main(words(data, run)) == 0
    return run


def state(run: Path) -> dict[str, object]:
    stored: dict[str, object] = json.loads((run / "checkpoints" / "last" / "state.json").read_text())
    return stored


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(run: Path, expected: Path, start: Path) -> None:
    """Weights, moments and figures, up to rounding; key biases apart, whose exact gradient is zero."""
    before, a, b = (load_file(folder / "model.safetensors") for folder in (start, _last(run), _last(expected)))
    moved = difference = 0.0
    for name, value in b.items():
        keep = np.ones(len(value), dtype=bool)
        if name.endswith("qkv.bias"):
            keep[len(value) // 3 : 2 * len(value) // 3] = False
        moved += float(((value - before[name])[keep].astype(np.float64) ** 2).sum())
        difference += float(((value - a[name])[keep].astype(np.float64) ** 2).sum())
    assert 0 < np.sqrt(difference) <= 1e-4 * np.sqrt(moved)
    figures, references = metrics(run), metrics(expected)
    assert [row["update"] for row in figures] == list(range(1, UPDATES + 1))
    for row, reference in zip(figures, references, strict=True):
        assert row["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert row["accuracy"] == reference["accuracy"], "summed over ranks"
        assert row["padding"] >= 0 and row["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
    assert (state(run)["examples"], state(run)["best"]) == (state(expected)["examples"], state(expected)["best"])
    assert json.loads((run / "results.json").read_text())["languages"].keys() == {"en", "fr", "ru"}


def _last(run: Path) -> Path:
    return run / "checkpoints" / "last"


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that all these runs start from, but for a learning rate of next to nothing."""
    run = tmp_path_factory.mktemp("start") / "run"
    assert main([*words(data, run), "optim.lr=1e-30", "max_updates=1"]) == 0
    return _last(run)


def test_a_signal_to_one_rank_stops_all_after_one_update_and_one_process_goes_on(
    data: Path, alone: Path, start: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = torchrun(*words(data, run), SIGNAL=f"1:5:{signal.SIGTERM.value}")
    assert done.returncode != 0 and "exitcode  : 143" in done.stderr
    assert "SIGTERM: saved update 6" in done.stderr
    own = done.stderr.partition("torch/distributed/elastic")[0]
    assert "Traceback" not in own and "arning" not in own.replace("warning: this dev accuracy is at chance", "")
    assert state(run)["update"] == 6
    shown = metrics(run)
    assert all(1 <= row["balance"] < 1.2 and row["traffic_mb"] > row["word_traffic_mb"] > 0 for row in shown)
    assert main(words(data, run)) == 0
    assert state(run)["resumed_from"] == [6]
    assert_same_training(run, alone, start)


def test_two_ranks_of_fsdp_go_on_from_one_process_and_restart_when_a_rank_is_killed(
    data: Path, alone: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(State, "count", State.count)  # put back afterwards
        signal_after(3, signal.SIGTERM)
        assert main(words(data, run)) == 143
    killed = f"1:9:{signal.SIGKILL.value}"
    options = [*words(data, run), "checkpoint.every=2", "distributed.engine=fsdp"]
    done = torchrun(*options, options=("--max-restarts=1",), SIGNAL=killed)
    assert done.returncode == 0, done.stderr
    resumed = state(run)["resumed_from"]
    assert isinstance(resumed, list) and resumed[0] == 3 and resumed[1:] in ([6], [8])
    assert_same_training(run, alone, start)


def test_fsdp_computes_in_bf16_what_one_process_computes(data: Path, tmp_path: Path) -> None:
    options = ["precision=bf16", "max_updates=3", "checkpoint.keep=none"]
    assert main([*words(data, tmp_path / "alone"), *options]) == 0
    done = torchrun(*words(data, tmp_path / "run"), *options, "distributed.engine=fsdp")
    assert done.returncode == 0, done.stderr
    losses, references = ([row["loss"] for row in metrics(tmp_path / name)] for name in ("run", "alone"))
    assert losses == pytest.approx(references, rel=1e-3)


def test_the_first_rank_that_fails_says_why_and_no_other_says_a_word(data: Path, tmp_path: Path) -> None:
    done = torchrun(*words(data, tmp_path / "run"), OTHER="1:data.root=/nowhere")
    assert done.returncode != 0 and "exitcode  : 2" in done.stderr
    own, _, _ = done.stderr.partition("torch/distributed/elastic")
    said = [line for line in own.splitlines() if "tokenizer" not in line and "WARNING" not in line]
    assert said[0] == "xsalt-train: error: /nowhere: no such folder"
    assert "Traceback" not in own and "gloo" not in done.stderr


def test_ranks_that_would_train_on_other_data_are_told_apart(data: Path, tmp_path: Path) -> None:
    done = torchrun(*words(data, tmp_path / "run"), OTHER="1:data.max_train=50")
    lines = [line for line in done.stderr.splitlines() if line.startswith("xsalt-train: error:")]
    assert len(lines) == 1 and "do not agree on the" in lines[0]
    assert "exitcode  : 2" in done.stderr
