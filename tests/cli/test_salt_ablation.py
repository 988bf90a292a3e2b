"""The study of examples/salt_ablation as a user runs it, on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import TINY, write_nli
from xsalt_cli.train import main

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "examples" / "salt_ablation" / "run.py"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with data, and studies of tiny models."""
    write_nli(tmp_path / "work" / "data")
    words = " ".join([*TINY, "--task xnli data.root={data} eval.split=test epochs=1 checkpoint.keep=none"])
    (tmp_path / "arms.yaml").write_text(
        f"words: {words}\n"
        "studies:\n"
        "  mixed: {seeds: [1, 2], arms: {none: --augmenter none, broken: --augmenter none optim.lr=-1}}\n"
        "  long: {seeds: [1, 2], arms: {none: --augmenter none epochs=2}}\n",
        encoding="utf-8",
    )
    return tmp_path


def command(folder: Path, *words: str) -> list[str]:
    places = ["--work", "work", "--results", "results", "--studies", "arms.yaml"]
    return [sys.executable, str(RUN), *words, *places]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *words), cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_failing_arm_is_reported_and_the_others_are_what_xsalt_train_gives(study: Path) -> None:
    git(study, "init", "-q")
    git(study, "config", "user.email", "a@b.c")
    git(study, "config", "user.name", "a")
    (study / "other.txt").write_text("mine")
    git(study, "add", "other.txt")
    done = run(study, "mixed", "--jobs", "2", "--commit", "--set", "log_every=5")
    assert done.returncode == 1, done.stderr
    assert "mixed/broken-s1: failed: optim.lr=-1" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("run.py: 2 of 4 runs failed: mixed/broken-s")
    found = {path.name: json.loads(path.read_text()) for path in (study / "results" / "mixed").iterdir()}
    assert set(found) == {"none-s1.json", "none-s2.json"}

    words = ["--task", "xnli", *TINY, f"data.root={study / 'work' / 'data'}", "eval.split=test", "epochs=1", "seed=2"]
    assert main([*words, f"run={study / 'direct'}"]) == 0
    expected = json.loads((study / "direct" / "results.json").read_text())
    kept = found["none-s2.json"]
    for name in ("languages", "average", "average_without_source", "split"):
        assert kept[name] == expected[name]
    assert (kept["source_dev"], kept["updates"]) == (expected["train"]["best_score"], expected["train"]["updates"])
    assert kept["command"].startswith("xsalt-train ") and kept["command"].endswith("log_every=5 seed=2")

    logged = git(study, "log", "--format=%s", "--name-only").split("\n")
    assert {line for line in logged if line} == {
        *(f"Record mixed: none, seed {seed}" for seed in (1, 2)),
        *(f"results/mixed/none-s{seed}.json" for seed in (1, 2)),
    }
    assert git(study, "status", "--short", "other.txt").startswith("A"), "what was staged besides is not committed"
    assert sorted(path.name for path in (study / "work" / "mixed").iterdir()) == [
        *(f"broken-s{seed}.log" for seed in (1, 2)),
        *(f"none-s{seed}.log" for seed in (1, 2)),
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_list_leaves_no_process_and_goes_on_where_it_was(study: Path, number: int) -> None:
    first = study / "results" / "long" / "none-s1.json"
    process = subprocess.Popen(
        command(study, "long"), cwd=study, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    process.send_signal(number)
    assert process.wait(timeout=60) == (130 if number == signal.SIGTERM else -number)
    while any(Path(f"/proc/{pid}/cwd").exists() for pid in workers.split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline
    before = first.read_bytes()
    left = run(study, "long", "--list")
    assert left.returncode == 0 and left.stdout.count("xsalt-train") == 1 and "seed=2" in left.stdout
    done = run(study, "long")
    assert done.returncode == 0, done.stderr
    assert "long: 1 of 2 runs have a result, 1 to do" in done.stdout
    assert first.read_bytes() == before
    assert {path.name for path in first.parent.iterdir()} == {f"none-s{seed}.json" for seed in (1, 2)}
