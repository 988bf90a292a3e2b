"""``python -m tests.faults.soak``: runs that are killed again and again, until each ends as if nothing had happened.

A run is started; at a random instant, counted from its start, it gets SIGKILL; every checkpoint that then lies in its
folder under a name that is read is verified; the same command starts it again. When it has ended, weights, optimizer,
metrics, TensorBoard's values, results and predictions are compared bit by bit with those of a run that nobody killed.
Runs follow each other until there were so many kills.

Runs of one process are forked from this one, which has everything imported, so that the instants lie within what a run
does rather than in the import of PyTorch. With ``--ranks N`` a run is ``torchrun`` with ``--max-restarts``; one rank of
it, drawn by chance, gets SIGKILL, at an instant counted from when rank 0 locks the run folder; ``torchrun`` starts all
ranks again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.faults.runs import SALT, command, outcome
from tests.tiny import write_nli
from xsalt.checkpoint import verify
from xsalt.errors import UserError
from xsalt.training.lock import LOCK

Killed = Callable[[], None]
KEYS = [*SALT, "log_every=4", "eval.every=12", "epochs=20", "checkpoint.every=9", "optim.lr=0.001"]


@dataclass
class Report:
    """What happened."""

    kills: int = 0
    runs: int = 0
    unreadable: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stages: dict[str, int] = field(default_factory=dict)
    """Kills by what the run was doing."""

    def good(self) -> bool:
        return not (self.unreadable or self.different or self.failed)


def start(arguments: list[str], log: Path) -> int:
    """Forks a run; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from xsalt_cli.train import main

        code = main(arguments)
        sys.stderr.flush()
        sys.stdout.flush()
    finally:
        os._exit(code)


def run_killed(
    arguments: list[str], log: Path, run: Path, ranks: int, instants: Iterator[float], killed: Killed
) -> int:
    """Exit code of a run that is started again after each kill, at these instants counted from each start."""
    if ranks > 1:
        return run_under_torchrun(arguments, log, run, ranks, instants, killed)
    while True:
        pid, ends = start(arguments, log), time.monotonic() + next(instants, 600.0)
        while time.monotonic() < ends:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(max(0.0, min(0.005, ends - time.monotonic())))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed()


def run_under_torchrun(
    arguments: list[str], log: Path, run: Path, ranks: int, instants: Iterator[float], killed: Killed
) -> int:
    """Exit code of a run of which one rank is killed at these instants, counted from each start; none left: no more."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--max-restarts=1000"]
    code = "import sys; from xsalt_cli.train import main; sys.exit(main())"
    command += ["--no-python", sys.executable, "-c", code, *arguments]
    with log.open("a") as out, subprocess.Popen([sys.executable, *command], stdout=out, stderr=out) as torchrun:
        before: set[int] = set()
        for instant in instants:
            own = set[int]()
            while torchrun.poll() is None and (len(own) < ranks or own & before or owner(run) not in own):
                own = children(torchrun.pid)
                time.sleep(0.005)
            ends = time.monotonic() + instant
            while torchrun.poll() is None and time.monotonic() < ends:
                time.sleep(0.005)
            victim = random.Random(instant).choice(sorted(own)) if own else 0
            if torchrun.poll() is not None or victim not in children(torchrun.pid):
                break
            os.kill(victim, signal.SIGKILL)
            killed()
            before = own
        return torchrun.wait(600)


def children(pid: int) -> set[int]:
    """Processes that a process has started and that run."""
    try:
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


def owner(run: Path) -> int:
    """The process that has locked the run folder; 0: none."""
    try:
        return int(json.loads((run / LOCK).read_text())["pid"])
    except (OSError, ValueError):
        return 0


def stage(run: Path, began: float) -> str:
    """What the killed run was doing, by what lies in its folder; it began at this time."""
    checkpoints = run / "checkpoints"
    if not (run / "config.yaml").exists():
        return "starting"
    if (run / "results.json").exists() or (run / "predictions").exists():
        return "evaluating"
    if any(path.stat().st_mtime > began for path in checkpoints.glob(".*")):
        return "saving"
    return "training" if (checkpoints / "last").exists() else "before the first checkpoint"


def unreadable(run: Path) -> list[str]:
    """Checkpoints under names that are read which are not whole."""
    found = []
    for folder in (run / "checkpoints").glob("[!.]*"):
        try:
            verify(folder)
        except UserError as error:
            found.append(str(error))
    return found


def soak(work: Path, kills: int, seed: int, keys: list[str], ranks: int) -> Report:
    """Runs, until there were so many kills."""
    chance, report = random.Random(seed), Report()
    data, log = write_nli(work / "data"), work / "log"
    whole = work / "whole"
    if run_killed(command(data, whole, *keys), log, whole, ranks, iter(()), lambda: None) != 0:
        raise SystemExit(f"the run that nobody kills fails: {log.read_text()[-2000:]}")
    lasts = (whole / "results.json").stat().st_mtime - (whole / "config.yaml").stat().st_mtime
    lasts, expected = lasts + 0.5, outcome(whole)  # reading data and building tables comes before
    while report.kills < kills:
        run = work / f"run{report.runs}"
        os.environ["XSALT_CACHE"] = str(work / f"cache{report.runs}")  # tables are built, and kills may hit that too
        log.write_text("")
        started = time.time()

        def killed(run: Path = run) -> None:
            nonlocal started
            at = stage(run, started)
            report.kills += 1
            report.stages[at] = report.stages.get(at, 0) + 1
            report.unreadable += unreadable(run)
            started = time.time()

        most = min(40, kills - report.kills)
        instants = (chance.uniform(0, 0.8 * lasts) for _ in range(most))
        code = run_killed(command(data, run, *keys), log, run, ranks, instants, killed)
        if code != 0:
            report.failed.append(f"exit code {code}: {log.read_text()[-500:]}")
        else:
            found = outcome(run)
            report.different += [f"run {report.runs}: {name}" for name in expected if found[name] != expected[name]]
        report.runs += 1
        shutil.rmtree(run)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("xsalt.training.run", "xsalt_cli.train", "xsalt.augmenters.mixup", "xsalt.augmenters.codeswitch"):
        importlib.import_module(name)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each restart that it sees
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XSALT_CACHE"] = f"{folder}/cache"
        report = soak(Path(folder), given.kills, given.seed, KEYS, given.ranks)
    stages = ", ".join(f"{n} {at}" for at, n in sorted(report.stages.items()))
    print(f"{report.kills} kills in {report.runs} runs: {stages}")
    print(f"unreadable states: {len(report.unreadable)}; runs that failed: {len(report.failed)}")
    print(f"differences from the run that nobody killed: {len(report.different)}")
    for line in (*report.unreadable, *report.failed, *report.different):
        print(line)
    return 0 if report.good() else 1


if __name__ == "__main__":
    sys.exit(main())
