"""Whole runs in processes of their own: what a run folder holds, how it resumes, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny import TINY, run_script, write_nli


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nli(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of six updates."""
    run = tmp_path_factory.mktemp("runs") / "plain"
    done = train(data, run)
    assert done.returncode == 0, done.stderr
    return run


def train(data: Path, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    keys = [f"data.root={data}", f"run={run}", "epochs=2", "log_every=1", *TINY, *more]
    return run_script("train", "--task", "xnli", *keys)


def weights(run: Path, name: str = "last") -> dict[str, np.ndarray]:
    return load_file(run / "checkpoints" / name / "model.safetensors")


def test_a_run_folder_holds_all_that_the_interface_promises(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert set(results["languages"]) == {"en", "fr", "ru"}
    assert all(row["n"] == 30 and 0 <= row["accuracy"] <= 1 for row in results["languages"].values())
    others = [results["languages"][language]["accuracy"] for language in ("fr", "ru")]
    assert results["average_without_source"] == pytest.approx(np.mean(others))
    assert results["source_language"] == "en"
    assert results["train"]["updates"] == 12 and results["train"]["examples"] == 192
    assert json.loads((finished / "results" / "dev.json").read_text()) == results
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json", "tokenizer.json"):
        assert (finished / "checkpoints" / "last" / name).is_file()
    assert not (finished / "checkpoints" / "best" / "optimizer.safetensors").exists()


def test_predictions_agree_with_the_reported_accuracy_and_keep_the_datas_order(finished: Path, data: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    for language, row in results["languages"].items():
        lines = (finished / "predictions" / f"dev-{language}.tsv").read_text().splitlines()
        assert lines[0].split("\t") == ["uid", "gold", "predicted", "entailment", "neutral", "contradiction"]
        cells = [line.split("\t") for line in lines[1:]]
        gold = [line.split("\t")[2] for line in (data / f"dev-{language}.tsv").read_text().splitlines()[1:]]
        assert [cell[1] for cell in cells] == gold
        assert np.mean([cell[1] == cell[2] for cell in cells]) == pytest.approx(row["accuracy"])
        assert all(abs(sum(map(float, cell[3:])) - 1) < 1e-5 for cell in cells)


def test_metrics_and_tensorboard_show_every_logged_update(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == list(range(1, 13))
    assert {"epoch", "loss", "lr", "grad_norm", "tokens_per_s", "pairs_per_s", "padding"} <= set(rows[0])
    assert all(0 < row["mfu"] < 1.5 and 0 <= row["data_wait"] < 1 and row["peak_memory_gb"] > 0.1 for row in rows)
    board = EventAccumulator(str(finished / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"train/loss", "train/lr", "train/grad_norm", "train/tokens_per_s", "train/padding"} <= tags
    assert {"train/mfu", "train/data_wait", "train/peak_memory_gb"} <= tags
    assert {"dev/accuracy/en", "dev/accuracy/fr", "dev/average"} <= tags
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 13))
    assert [e.value for e in board.Scalars("train/loss")] == pytest.approx([row["loss"] for row in rows], rel=1e-6)


def test_a_finished_run_says_so_and_trains_no_more(finished: Path, data: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    done = train(data, finished)
    assert done.returncode == 0 and "finished" in done.stderr
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_another_configuration_in_the_same_folder_is_refused_with_the_keys(finished: Path, data: Path) -> None:
    done = train(data, finished, "optim.lr=0.5")
    assert done.returncode == 2
    assert "optim.lr" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_killed_run_continues_mid_epoch_bit_identically(finished: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    keys = [f"data.root={data}", f"run={run}", "epochs=2", "log_every=1", *TINY, "checkpoint.every=1"]
    code = "import sys; from xsalt_cli.train import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--task", "xnli", *keys],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    code_ = process.wait(timeout=60)
    assert code_ in (143, 0), "SIGTERM saves and exits 143 (0 if the run was over by then)"
    stopped_at = json.loads((run / "checkpoints" / "last" / "state.json").read_text())["update"]
    done = train(data, run, "checkpoint.every=1")
    assert done.returncode == 0, done.stderr
    if stopped_at < 12:
        assert f"at update {stopped_at}" in done.stderr
    a, b = weights(finished), weights(run)
    assert set(a) == set(b)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    rows = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line)["loss"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert rows == expected


def test_resuming_another_runs_checkpoint_continues_it_with_more_updates(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "longer"
    done = train(data, run, "epochs=3", f"resume={finished}")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line)["update"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(13, 19))


def test_eval_of_a_run_gives_the_runs_own_numbers_and_other_splits(finished: Path) -> None:
    before = json.loads((finished / "results" / "dev.json").read_text())
    again = run_script("eval", str(finished))
    assert again.returncode == 0, again.stderr
    assert json.loads((finished / "results" / "dev.json").read_text())["languages"] == before["languages"]
    test = run_script("eval", str(finished), "eval.split=test", "languages=fr")
    assert test.returncode == 0, test.stderr
    results = json.loads((finished / "results" / "test.json").read_text())
    assert results["split"] == "test" and set(results["languages"]) == {"en", "fr"}


def test_what_is_kept_changes_no_result(data: Path, tmp_path: Path) -> None:
    found, held = {}, {}
    for keep in ("all", "best", "none"):
        run = tmp_path / keep
        done = train(data, run, f"checkpoint.keep={keep}", "eval.every=1", "optim.lr=0.01", "eval.split=test")
        assert done.returncode == 0, done.stderr
        results = json.loads((run / "results.json").read_text())
        del results["train"]["wall_s"], results["train"]["pairs_per_s"]
        found[keep] = results
        held[keep] = sorted(p.name for p in (run / "checkpoints").iterdir()) if (run / "checkpoints").exists() else []
    assert held == {"all": ["best", "last", "update-6"], "best": ["best"], "none": []}
    assert found["all"]["train"]["best_update"] < found["all"]["train"]["updates"], "else the last weights would do"
    assert found["all"] == found["best"] == found["none"]
    for split in ("test-fr", "test-en"):
        assert len({(tmp_path / keep / "predictions" / f"{split}.tsv").read_text() for keep in found}) == 1


def test_dry_run_writes_nothing(data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path / "dry", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["updates"] == 12
    assert not (tmp_path / "dry").exists()


def test_early_stopping_ends_the_run_when_patience_does(data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path / "early", "eval.every=1", "eval.patience=1", "optim.lr=1e-12")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "early" / "results.json").read_text())["train"]["updates"] == 2


def test_init_from_takes_the_encoder_of_another_run(finished: Path, data: Path, tmp_path: Path) -> None:
    tokenizer = finished / "checkpoints" / "best"
    keys = [
        f"init_from={finished}",
        f"tokenizer={tokenizer}",
        "max_updates=1",
        "optim.lr=1e-12",
        "optim.weight_decay=0",
    ]
    done = train(data, tmp_path / "init", *keys)
    assert done.returncode == 0, done.stderr
    a, b = weights(finished, "best"), weights(tmp_path / "init")
    name = "encoder.layers.0.ffn_in.weight"
    np.testing.assert_allclose(a[name], b[name], atol=1e-9)
    assert not np.allclose(a["classifier.out.weight"], b["classifier.out.weight"], atol=1e-4)


@pytest.mark.parametrize("batch", [["batch.accumulate=3"], ["batch.max_tokens=64"]])
def test_accumulation_and_token_budgets_run(batch: list[str], data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path / "run", *batch)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["train"]["examples"] == 192


def test_the_reference_kernels_train_as_the_fused_ones_do(data: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "reference"
    done = train(data, run, "kernels=reference")
    assert done.returncode == 0, done.stderr
    losses = [
        [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
        for folder in (finished, run)
    ]
    assert len(losses[0]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_profile_writes_a_trace_of_five_updates_and_changes_nothing(data: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "profiled"
    done = train(data, run, "profile=true")
    assert done.returncode == 0, done.stderr
    trace = json.loads((run / "profile" / "trace.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if event["name"].startswith("ProfilerStep")}
    assert len(steps) == 5
    names = {event["name"] for event in trace["traceEvents"]}
    assert {"xsalt::embed", "aten::addmm"} <= names
    assert "xsalt::embed" in (run / "profile" / "operators.txt").read_text()
    assert all(np.array_equal(w, weights(run)[name]) for name, w in weights(finished).items())


def test_list_says_which_kernels_are_used() -> None:
    done = run_script("list", "--kernels", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"cpu", "cuda"}
    assert found["cpu"].startswith(("C++ (", "reference (plain PyTorch): "))


def test_training_files_without_a_data_folder_are_enough(data: Path, tmp_path: Path) -> None:
    keys = [f"data.train=[{data / 'train-en.tsv'}]", f"run={tmp_path / 'run'}", "max_updates=2", *TINY]
    done = run_script("train", "--task", "pairs", *keys)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").is_file()
    for nothing in (
        run_script("train", "--task", "pairs", f"run={tmp_path / 'other'}", *TINY),
        run_script("eval", str(tmp_path / "run")),
    ):
        assert nothing.returncode == 2
        assert nothing.stderr.splitlines()[-1].endswith("no embedded data: give data.root=DIR")
