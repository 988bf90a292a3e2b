"""Runs a study of arms.yaml: every arm with every seed, several side by side, leaving out runs that have a result.

    python examples/salt_ablation/run.py xnli --jobs 4 --commit

A list that was stopped or killed goes on where it was. Results are small JSON files; run folders are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from studies import ARMS, HERE, RESULTS, Run, find_study, read_result, write_result

from xsalt.errors import UserError
from xsalt_cli.guard import guard


class Worker:
    """The process that trains, started again if it dies."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, words: list[str], folder: Path, log: Path) -> dict[str, Any]:
        """A run's result, or ``{"error": ...}``."""
        if self.process is None:
            self.process = self._start()
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            print(json.dumps({"words": words, "folder": str(folder), "log": str(log)}), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self.process = None
        return {
            "error": f"its process ended with code {process.wait()} (a negative one is a signal: -9 out of memory?)"
        }

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "RAYON_NUM_THREADS": str(self.threads)}
        return subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), str(self.threads), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the list alone, which then ends its workers
        )

    def stop(self) -> None:
        """Has a run that is under way save what its ``checkpoint.keep`` allows, and ends the process."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()


class List:
    """The runs of a study that are left, and what becomes of them."""

    def __init__(self, runs: Sequence[Run], options: argparse.Namespace) -> None:
        self.options, self.total = options, len(runs)
        self.todo: queue.SimpleQueue[Run] = queue.SimpleQueue()
        for run in runs:
            self.todo.put(run)
        self.done = 0
        self.failed: list[str] = []
        self.stopping = False
        self.began = time.monotonic()
        self.lock = threading.Lock()
        threads = max(1, cores() // options.jobs)
        self.workers = [Worker(threads) for _ in range(min(options.jobs, len(runs)))]

    def work(self, worker: Worker) -> None:
        """Takes runs until there are none left."""
        while not self.stopping:
            try:
                run = self.todo.get_nowait()
            except queue.Empty:
                return
            words = run.command_line(self.options.data, self.options.work)
            folder = self.options.work / run.study / f"{run.arm}-s{run.seed}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            found = worker(words, folder, folder.with_name(f"{folder.name}.log"))
            with self.lock:
                if not self.stopping:
                    self.finish(run, words, found, folder.with_name(f"{folder.name}.log"))

    def finish(self, run: Run, words: Sequence[str], found: dict[str, Any], log: Path) -> None:
        """Keeps a result and says so, or says what failed."""
        self.done += 1
        error = found.get("error")
        if error is None:
            about = {"study": run.study, "arm": run.arm, "seed": run.seed, "words": run.words, "more": run.more}
            path = run.result(self.options.results)
            write_result(path, {**about, "command": shlex.join(["xsalt-train", *words]), **found})
            error = commit(path, run) if self.options.commit else None
        if error is not None:
            self.failed.append(run.name)
            print(f"[{self.done}/{self.total}] {run.name}: failed: {error} (log: {log})", file=sys.stderr, flush=True)
            return
        left = (time.monotonic() - self.began) / self.done * (self.total - self.done)
        scores = {"average": found["average"], "without source": found["average_without_source"]}
        scores["source dev"] = found["source_dev"]
        shown = ", ".join(f"{name} {100 * score:.2f}" for name, score in scores.items() if score is not None)
        print(f"[{self.done}/{self.total}] {run.name}: {shown}; {found['run_s']:.0f} s, {left:.0f} s left", flush=True)

    def run(self) -> int:
        """Exit code: 0, or 1 if a run failed."""
        threads = [threading.Thread(target=self.work, args=(worker,), daemon=True) for worker in self.workers]
        before = signal.signal(signal.SIGTERM, _interrupt)
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self.stopping = True
            for worker in self.workers:
                worker.stop()
            signal.signal(signal.SIGTERM, before)
        if self.failed:
            print(f"run.py: {len(self.failed)} of {self.total} runs failed: {', '.join(self.failed)}", file=sys.stderr)
        return 1 if self.failed else 0


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit(path: Path, run: Run) -> str | None:
    """Commits one result and nothing else. Returns what went wrong, if something did."""
    message = f"Record {run.study}: {run.arm}, seed {run.seed}"
    for words in (["add", path.name], ["commit", "-q", "-m", message, "--", path.name]):
        done = subprocess.run(["git", "-C", str(path.parent), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"git {words[0]}: {' '.join((done.stderr or done.stdout).split())}"
    return None


def numbers(text: str) -> list[int]:
    """Seeds from ``1,2,5`` or ``1-5``."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r}: seeds as 1,2,5 or 1-5 are needed")
        found += range(int(first), int(last if dash else first) + 1)
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("study", help="a study of arms.yaml")
    made.add_argument("--arms", default="", help="some of its arms, NAME,NAME; default: all")
    made.add_argument("--seeds", type=numbers, default=[], help="1,2,5 or 1-5; default: the study's")
    made.add_argument("--jobs", type=int, default=1, help="runs side by side; cores are divided among them")
    made.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for every arm")
    made.add_argument("--work", type=Path, default=Path("runs/salt_ablation"), help="default: %(default)s")
    made.add_argument("--data", type=Path, help="what prepare.py wrote; default: WORK/data")
    made.add_argument("--results", type=Path, default=RESULTS, help="default: results beside this script")
    made.add_argument("--studies", type=Path, default=ARMS, help="default: arms.yaml beside this script")
    made.add_argument("--commit", action="store_true", help="commit each result as it comes")
    made.add_argument("--list", action="store_true", help="print the command lines that are left to run, and stop")
    return made


def run_study(options: argparse.Namespace) -> int:
    """Raises ``UserError`` before anything is trained if the request makes no sense."""
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: at least 1")
    for word in options.set:
        if "=" not in word or word.startswith(("-", "run=", "seed=")):
            raise UserError(f"--set {word}: KEY=VALUE of xsalt-train is needed, other than run and seed")
    options.data = options.data or options.work / "data"
    study = find_study(options.study, options.studies)
    runs = study.runs([arm for arm in options.arms.split(",") if arm], options.seeds, options.set)
    left = [run for run in runs if read_result(run, options.results) is None]
    if options.list:
        for run in left:
            print(shlex.join(["xsalt-train", *run.command_line(options.data, options.work)]))
        return 0
    print(f"{study.name}: {len(runs) - len(left)} of {len(runs)} runs have a result, {len(left)} to do", flush=True)
    if options.commit:
        options.results.mkdir(parents=True, exist_ok=True)
        inside = ["git", "-C", str(options.results), "rev-parse", "--is-inside-work-tree"]
        if subprocess.run(inside, capture_output=True, check=False).returncode:
            raise UserError(f"--commit: {options.results} is in no git repository: leave it out, or give --results DIR")
    # nothing is written outside of --work and --results
    os.environ.setdefault("XSALT_CACHE", str((options.work / "cache").resolve()))
    return List(left, options).run() if left else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return guard("run.py", lambda: run_study(options))


if __name__ == "__main__":
    sys.exit(main())
