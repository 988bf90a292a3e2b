"""Disks that are full, folders that are read-only or gone, and two runs in one folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Train
from tests.faults.runs import outcome, state
from xsalt.checkpoint import verify
from xsalt.errors import UserError
from xsalt.training.lock import LOCK, STALE_S, locked

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """``mount(path, "-t", "tmpfs", ...)``: mounts until the test ends. Skips the test where that is not allowed."""
    done: list[Path] = []

    def mount_at(path: Path, *options: str) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        if (
            shutil.which("mount") is None
            or subprocess.run(["mount", *options, str(path)], capture_output=True).returncode
        ):
            pytest.skip("this user may not mount")
        done.append(path)
        return path

    yield mount_at
    for path in reversed(done):
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(folder: Path, leave: int) -> Callable[[], None]:
    """Fills the disk that the folder is on, up to so many bytes."""

    def act() -> None:
        free = shutil.disk_usage(folder).free
        (folder / "filling").write_bytes(b"x" * max(0, free - leave))

    return act


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err, err
    line = err.strip().splitlines()[-1]
    assert line.startswith("xsalt-train: error: ")
    return line


@pytest.mark.parametrize(("background", "leave"), [("true", 200_000), ("false", 200_000), ("true", 0)])
def test_on_a_full_disk_the_last_checkpoint_survives_and_the_run_goes_on_when_there_is_room(
    background: str, leave: int, train: Train, mount: Mount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m", "tmpfs")
    run, keys = disk / "run", ["checkpoint.every=1", f"checkpoint.background={background}"]
    assert train(run, *keys, at={6: fill(disk, leave)}) == 2
    line = last_line(capsys)
    assert "No space left on device" in line and "kept" in line and str(run) in line
    verify(run / "checkpoints" / "last")
    assert state(run)["update"] >= 4, "at most what was being written when the disk was full is lost"
    assert not list((run / "checkpoints").glob(".*")), "what could not be finished takes no room"
    (disk / "filling").unlink()
    assert train(run, *keys) == 0
    assert train(tmp_path / "whole", *keys) == 0
    assert outcome(run) == outcome(tmp_path / "whole")


def test_a_disk_that_is_full_from_the_start_is_told(
    train: Train, mount: Mount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    fill(disk, 0)()
    assert train(disk / "run") == 2
    assert "No space left on device" in last_line(capsys)


def test_a_read_only_folder_is_refused_before_anything_is_computed(
    train: Train, mount: Mount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs")
    assert train(disk / "run") == 2
    line = last_line(capsys)
    assert "Read-only file system" in line and "choose another folder" in line


def test_checkpoints_that_become_read_only_stop_the_run_and_survive(
    train: Train, mount: Mount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def protect() -> None:
        mount(run / "checkpoints", "--bind", str(run / "checkpoints"))
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run / "checkpoints")], check=True)

    # nothing may be open for writing there at that moment, or the system does not let it become read-only
    assert train(run, "checkpoint.every=1", "checkpoint.background=false", at={6: protect}) == 2
    assert "Read-only file system" in last_line(capsys)
    verify(run / "checkpoints" / "last")
    assert state(run)["update"] >= 4


def test_a_folder_that_vanishes_is_told_and_not_made_again(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    keys = ["checkpoint.every=1", "checkpoint.background=false"]

    def vanish() -> None:
        run.rename(tmp_path / "elsewhere")

    assert train(run, *keys, at={6: vanish}) == 2
    assert f"{run}: the run folder is gone" in last_line(capsys)
    assert not run.exists()
    verify(tmp_path / "elsewhere" / "checkpoints" / "last")


def test_a_second_run_in_a_folder_is_refused_by_the_first_ones_pid_and_host(
    train: Train, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code = "import sys, time; from xsalt.training.lock import locked; from pathlib import Path\n"
    code += "with locked(Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        assert train(run) == 2
        line = last_line(capsys)
        assert f"in use by process {owner.pid} on {socket.gethostname()} since 20" in line
        assert os.listdir(run) == [LOCK], "nothing is written into another's folder"
        owner.send_signal(signal.SIGKILL)
    assert train(run) == 0
    assert f"process {owner.pid} on {socket.gethostname()} left its lock behind" in capsys.readouterr().err
    assert not (run / LOCK).exists()


def test_a_lock_of_another_machine_counts_as_long_as_it_is_touched(tmp_path: Path) -> None:
    tmp_path.joinpath(LOCK).write_text(json.dumps({"pid": 7, "host": "elsewhere", "began": "1", "since": "today"}))
    with pytest.raises(UserError, match="in use by process 7 on elsewhere since today"), locked(tmp_path):
        pass
    long_ago = time.time() - STALE_S - 1
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\0\0"])
def test_a_lock_file_that_nobody_holds_and_that_says_nothing_is_taken(content: str, tmp_path: Path) -> None:
    tmp_path.joinpath(LOCK).write_text(content)
    long_ago = time.time() - STALE_S - 1
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()


def test_a_run_that_fails_before_it_begins_leaves_no_folder(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "run", "max_length=4", "model.max_positions=3") == 2
    assert not (tmp_path / "run").exists()
