"""A run that was stopped and resumed, once or often, ends as if nothing had happened, bit by bit."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Train, send
from tests.faults.runs import SALT, outcome, state

RUNS = {
    # name -> keys, micro-batches at which the run is stopped (counted from each start)
    "dropout, word decay, windows of several updates": (
        ["log_every=5", "optim.lr=0.01", "optim.weight_decay=0.5", "eval.every=4", "checkpoint.keep_last=1"],
        [2, 4, 2],  # within an epoch, at its end, within the next one
    ),
    "early stopping": (["eval.every=1", "eval.patience=3", "optim.lr=1e-12"], [1, 2]),
    "SALT": ([*SALT, "log_every=2", "--criterion", "faulty,consistency"], [4, 3]),
}


@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_resumed_is_as_uninterrupted(
    name: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, stops = RUNS[name]
    assert train(tmp_path / "whole", *keys) == 0
    for stop in stops:
        assert train(tmp_path / "parts", *keys, at={stop: send(signal.SIGTERM)}) == 143
        assert "SIGTERM: saved update" in capsys.readouterr().err
    assert train(tmp_path / "parts", *keys) == 0
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    for key, value in whole.items():
        assert parts[key] == value, key
    assert len(whole["metrics"]) >= 1 and whole["copy"]
    if name == "early stopping":
        assert whole["state"]["stopped_early"] and whole["state"]["update"] == 4
    if name.startswith("dropout"):
        assert 0 < whole["state"]["word_decay"] < 0.97


@pytest.mark.parametrize("background", ["true", "false"])
def test_checkpoints_come_every_n_updates_and_the_ones_before_are_kept(
    background: str, train: Train, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keys = ["checkpoint.every=3", "checkpoint.keep_last=3", f"checkpoint.background={background}", "epochs=3"]
    assert train(run, *keys) == 0
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best", "last", "update-12", "update-15"]
    assert [state(run, name)["update"] for name in names[1:]] == [18, 12, 15]


def test_checkpoints_come_by_the_clock(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = ["checkpoint.minutes=1e-9", "checkpoint.keep_last=20"]
    assert train(run, *keys) == 0
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"best", "last", *(f"update-{n}" for n in range(1, 12))}
    assert train(tmp_path / "rare", "checkpoint.minutes=60", "checkpoint.keep_last=20") == 0
    assert {path.name for path in (tmp_path / "rare" / "checkpoints").iterdir()} == {"best", "last"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("model.safetensors", flip),
    ("optimizer.safetensors", cut),
    ("state.json", Path.unlink),
    ("manifest.json", cut),
]


def test_resuming_falls_back_to_the_newest_good_checkpoint_and_names_what_is_bad(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, keys = tmp_path / "run", ["checkpoint.every=1", "checkpoint.keep_last=3"]
    assert train(tmp_path / "whole", *keys) == 0
    good = 0
    for name, spoil in DAMAGE:  # each time three updates further, then one back
        assert train(run, *keys, at={3: send(signal.SIGTERM)}) == 143
        assert state(run)["update"] == good + 3
        good += 2
        spoil(run / "checkpoints" / "last" / name)
        if name == "state.json":  # and the one before it too
            flip(run / "checkpoints" / f"update-{good}" / "manifest.json")
            good -= 1
        capsys.readouterr()
        assert train(run, *keys, at={1: send(signal.SIGTERM)}) == 143
        err = capsys.readouterr().err
        assert f"last/{name}" in err and "damaged-last, falling back to" in err and f"at update {good}" in err
        assert (run / "checkpoints" / "damaged-last").is_dir()
        good += 1
        assert state(run)["update"] == good
    assert train(run, *keys) == 0
    whole, parts = outcome(tmp_path / "whole"), outcome(run)
    for key, value in whole.items():
        assert parts[key] == value, key


def test_where_no_checkpoint_is_whole_the_run_is_refused_and_nothing_is_removed(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, "checkpoint.every=1", at={3: send(signal.SIGTERM)}) == 143
    for name in ("last", "update-2"):
        flip(run / "checkpoints" / name / "optimizer.safetensors")
    before = sorted(path for path in run.rglob("*"))
    capsys.readouterr()
    assert train(run, "checkpoint.every=1") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "last/optimizer.safetensors: damaged" in last and "resume=never" in last
    assert sorted(path for path in run.rglob("*")) == before
    assert train(run, "checkpoint.every=1", "resume=never") == 0


def test_a_kill_between_the_two_renames_of_a_save_costs_that_save_alone(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for keep in (1, 2):
        run, keys = tmp_path / f"run{keep}", ["checkpoint.every=1", f"checkpoint.keep_last={keep}"]
        assert train(run, *keys, at={3: send(signal.SIGTERM)}) == 143
        checkpoints = run / "checkpoints"
        former = checkpoints / (".last.old" if keep == 1 else "update-3")
        (checkpoints / "last").rename(former)
        (checkpoints / ".last.new").mkdir()
        capsys.readouterr()
        assert train(run, *keys) == 0
        assert "at update 3" in capsys.readouterr().err


def test_a_best_checkpoint_that_is_gone_or_damaged_is_no_other_result(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, at={7: send(signal.SIGTERM)}) == 143
    (run / "checkpoints" / "best").rename(tmp_path / "best")
    assert train(run, "optim.max_skipped=3") == 2
    assert "checkpoints/best: is gone" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "best").rename(run / "checkpoints" / "best")
    flip(run / "checkpoints" / "best" / "model.safetensors")
    assert train(run) == 2
    assert "best/model.safetensors: damaged" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_goes_on_from_another_takes_its_best_weights_along(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "first", "optim.lr=1e-12", "eval.every=2") == 0
    assert train(tmp_path / "second", "optim.lr=1e-12", "eval.every=2", "epochs=3", f"resume={tmp_path / 'first'}") == 0
    assert state(tmp_path / "second")["best_update"] == state(tmp_path / "first")["best_update"] == 2
    best = [tmp_path / name / "checkpoints" / "best" / "model.safetensors" for name in ("first", "second")]
    assert best[0].read_bytes() == best[1].read_bytes()
