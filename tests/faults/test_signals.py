"""Signals at any time: the exit code and one line, a checkpoint where there is something to save, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.faults.conftest import Train, send
from tests.faults.runs import SALT, command, state


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``xsalt-train`` in a process of its own."""
    code = "import sys; from xsalt_cli.train import main; sys.exit(main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if true():
            return
        assert process.poll() is None, "it ended before"
        time.sleep(0.01)
    raise AssertionError("it never came")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_before_training_begins_ends_in_one_line(
    number: int, code: int, word: str, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with started(*command(data, run, *SALT, "epochs=100000")) as process:
        wait_until((run / ".lock").exists, process)  # data, tables and model are still to come
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == code, err
    assert err.strip().splitlines()[-1] == f"xsalt-train: {word}" and "Traceback" not in err
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_training_finishes_the_update_and_saves_it(
    number: int, code: int, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, at={5: send(number)}) == code
    assert state(tmp_path)["update"] == 5
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(f": saved update 5 in {tmp_path}")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_without_checkpoints_it_does_not_claim_to_have_saved(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "checkpoint.keep=none", at={5: send(signal.SIGTERM)}) == 143
    assert "nothing was saved to resume from" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_second_signal_ends_the_process_at_once(train: Train, tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        time.sleep(0.01)
        send(signal.SIGTERM)()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, from Python 3.12 on
        child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(
                1
            )  # the threads of this process's pool are not in the child, which would wait for them
            train(tmp_path, at={5: twice})
        finally:
            os._exit(0)  # not reached
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    assert not (tmp_path / "checkpoints").exists()
