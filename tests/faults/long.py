"""The long runs: ``python tests/faults/long.py flips --cases 1000`` and ``malformed --cases 10000``.

Each reader of malformed files runs in a process of its own, so that a crash or a hang in compiled code is seen too.
``--seed`` gives other cases, ``--only NAME --case N`` repeats a single one. Exit code 0 if there is no fault.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.flips import SUBJECTS, trials
from tests.faults.readers import READERS
from tests.faults.trial import SECONDS, attempt, run_case

GRACE = 6 * SECONDS
"""Seconds without a finished case after which the process of a reader hangs in compiled code."""


def flips(cases: int, seed: int) -> int:
    ends: Counter[str] = Counter()
    for number, subject in enumerate(SUBJECTS.values()):
        share = cases // len(SUBJECTS) + (number < cases % len(SUBJECTS))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "subject"
            folder.mkdir()
            of_subject: Counter[str] = Counter()
            for flip in itertools.islice(trials(subject, folder, seed), share):
                of_subject[flip.end] += 1
                if flip.end == "fault":
                    print(f"FAULT {subject.name}: {flip.file}, {flip.damage}: {flip.reason}")
        print(f"{subject.name:20s} {dict(of_subject)}", flush=True)
        ends += of_subject
    print(f"{sum(ends.values())} damaged files: {dict(ends)}")
    return int(ends["fault"] > 0)


def worker(name: str, cases: range, log: Path) -> None:
    """A line of JSON before each case, with its number, and one after it, with its outcome."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries print of their panics
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as temporary, log.open("a") as file:
        folder = Path(temporary)
        reader.make(folder)
        good = (folder / reader.file).read_bytes()
        first = attempt(reader, folder)
        if not first.accepted or first.fault:
            raise SystemExit(f"{name}: the good file is refused: {first}")
        for case in cases:
            print(json.dumps(case), file=file, flush=True)
            outcome = run_case(reader, folder, good, case)
            print(json.dumps(outcome.__dict__), file=file, flush=True)


def supervise(name: str, cases: range, log: Path) -> list[str]:
    """Runs a reader's cases; gives what the process itself died of."""
    died = []
    context = multiprocessing.get_context("fork")
    rest = cases
    while rest:
        process = context.Process(target=worker, args=(name, rest, log))
        process.start()
        moved, seen = time.monotonic(), -1
        while process.is_alive() and time.monotonic() - moved < GRACE:
            process.join(0.2)
            size = log.stat().st_size if log.exists() else 0
            moved, seen = (time.monotonic(), size) if size != seen else (moved, seen)
        if process.is_alive():
            process.kill()
        process.join()
        if process.exitcode == 0:
            return died
        at = [int(line) for line in log.read_text().splitlines() if line.isdigit()]
        if not at:
            return [*died, f"{name}: the process ended with {process.exitcode} before the first case"]
        died.append(f"{name} case {at[-1]}: the process ended with {process.exitcode}")
        rest = range(at[-1] + 1, cases.stop)
    return died


def malformed(cases: int, seed: int) -> int:
    total, accepted, faults, slowest, largest = 0, 0, 0, 0.0, 0
    for number, name in enumerate(READERS):
        share = cases // len(READERS) + (number < cases % len(READERS))
        with tempfile.TemporaryDirectory() as temporary:
            log = Path(temporary) / "log"
            died = supervise(name, range(seed * 1_000_000, seed * 1_000_000 + share), log)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
        outcomes = [line for line in lines if isinstance(line, dict)]
        wrong = [(case, outcome) for case, outcome in itertools.pairwise(lines) if is_fault(outcome)]
        for text in [*died, *(f"{name} case {case}: {outcome['fault'][-600:]}" for case, outcome in wrong)]:
            print(f"FAULT {text}")
        taken = sum(outcome["accepted"] for outcome in outcomes)
        print(f"{name:34s} {len(outcomes):5d} files, {taken:4d} accepted, {len(wrong) + len(died)} faults", flush=True)
        total, accepted, faults = total + len(outcomes), accepted + taken, faults + len(wrong) + len(died)
        slowest = max([slowest, *(outcome["seconds"] for outcome in outcomes)])
        largest = max([largest, *(outcome["memory"] for outcome in outcomes)])
    print(
        f"{total} files: {total - accepted} refused in one line, {accepted} accepted as they read, {faults} faults; "
        f"slowest {slowest:.2f} s, most memory {largest >> 20} MiB"
    )
    return int(faults > 0)


def is_fault(line: object) -> bool:
    return isinstance(line, dict) and line["fault"] is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["flips", "malformed"])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a reader's name")
    parser.add_argument("--case", type=int, help="the number of a case of that reader")
    options = parser.parse_args()
    if options.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            reader = READERS[options.only]
            reader.make(Path(folder))
            print(run_case(reader, Path(folder), (Path(folder) / reader.file).read_bytes(), options.case))
        return 0
    return (flips if options.what == "flips" else malformed)(options.cases, options.seed)


if __name__ == "__main__":
    sys.exit(main())
