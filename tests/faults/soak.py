"""``python -m tests.faults.soak``: runs that are killed again and again, until each ends as if nothing had happened.

A run is started; at a random instant, counted from its start, it gets SIGKILL; every checkpoint that then lies in its
folder under a name that is read is verified; the same command starts it again. When it has ended, weights, optimizer,
metrics, TensorBoard's values, results and predictions are compared bit by bit with those of a run that nobody killed.
Runs follow each other until there were so many kills.

The runs are forked from this process, which has everything imported, so that the instants lie within what a run does
rather than in the import of PyTorch.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.runs import SALT, command, outcome
from tests.tiny import write_nli
from xsalt.checkpoint import verify
from xsalt.errors import UserError

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


def run_forked(arguments: list[str], log: Path, kill_after: float | None) -> int | None:
    """Exit code of a run, or None if it was killed after so many seconds."""
    pid, ends = start(arguments, log), time.monotonic() + (kill_after if kill_after is not None else 600)
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(max(0.0, min(0.005, ends - time.monotonic())))
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code == -signal.SIGKILL else code


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


def soak(work: Path, kills: int, seed: int, keys: list[str]) -> Report:
    """Runs in one process each, until there were so many kills."""
    instants, report = random.Random(seed), Report()
    data, log = write_nli(work / "data"), work / "log"
    began = time.monotonic()
    if run_forked(command(data, work / "whole", *keys), log, None) != 0:
        raise SystemExit(f"the run that nobody kills fails: {log.read_text()[-2000:]}")
    lasts, expected = time.monotonic() - began, outcome(work / "whole")
    while report.kills < kills:
        run, tries = work / f"run{report.runs}", 0
        os.environ["XSALT_CACHE"] = str(work / f"cache{report.runs}")  # tables are built, and kills may hit that too
        log.write_text("")
        code: int | None = None
        while code is None:
            more = report.kills < kills and tries < 40
            started = time.time()
            code = run_forked(command(data, run, *keys), log, instants.uniform(0, 0.8 * lasts) if more else None)
            tries += 1
            if code is None:
                report.kills += 1
                at = stage(run, started)
                report.stages[at] = report.stages.get(at, 0) + 1
                report.unreadable += unreadable(run)
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
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XSALT_CACHE"] = f"{folder}/cache"
        report = soak(Path(folder), given.kills, given.seed, KEYS)
    stages = ", ".join(f"{n} {at}" for at, n in sorted(report.stages.items()))
    print(f"{report.kills} kills in {report.runs} runs: {stages}")
    print(f"unreadable states: {len(report.unreadable)}; runs that failed: {len(report.failed)}")
    print(f"differences from the run that nobody killed: {len(report.different)}")
    for line in (*report.unreadable, *report.failed, *report.different):
        print(line)
    return 0 if report.good() else 1


if __name__ == "__main__":
    sys.exit(main())
