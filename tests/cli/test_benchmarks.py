"""The benchmarks run, and xsalt trains as ``transformers.Trainer`` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "examples" / "benchmarks" / "benchmark.py"


def test_losses_agree_with_trainer_and_the_json_holds_every_contestant(tmp_path: Path) -> None:
    tiny = ["--bert-layers", "2", "--bert-width", "64", "--rounds", "1", "--updates", "5", "--loss-steps", "6"]
    file = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "bert", *tiny, "--fp32", "--threads", "1", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())["bert"]
    assert {"xsalt", "Trainer tuned", "loop by hand"} == set(results["contestants"])
    for row in results["contestants"].values():
        assert row["tokens_per_s"] > 0
        assert 0.1 < row["peak_memory_gb"] < 10
        assert row["mean_loss"] == pytest.approx(1.1, abs=0.1)
    assert results["losses_without_dropout"]["mean_absolute_difference"]["Trainer tuned"] < 1e-4
    assert set(results["speed_against"]) == {"Trainer tuned", "loop by hand"}


def test_the_benchmark_for_gpus_runs_in_small_and_finds_its_kernels_right(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    script = [sys.executable, str(BENCHMARK.with_name("gpu.py"))]
    options = {"capture_output": True, "text": True, "timeout": 300, "check": False}
    done = subprocess.run(
        [*script, "--tiny", "--json", str(file)], env={**os.environ, "OMP_NUM_THREADS": "1"}, **options
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    assert results["check"]["failed"] == results["check of a step"]["failed"] == []
    assert sum(isinstance(value, list) for value in results["check"].values()) > 8
    assert {"batch 4: xsalt", "batch 4: transformers", "batch 4: xsalt, kernels=reference"} == set(results["step"])
    assert all(row["tokens/s"] > 0 for row in results["step"].values())
    unknown = subprocess.run([*script, "--tiny", "stepp"], **options)
    assert unknown.returncode == 2
    assert "stepp" in unknown.stderr
