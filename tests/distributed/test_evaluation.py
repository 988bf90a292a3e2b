"""Evaluation is the same numbers, to the bit, however many ranks share it; so are the tables of a training run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.torchrun import torchrun
from tests.tiny import LISTS, TINY, write_nli
from xsalt.data.substitutions import IDS, MANIFEST, PROBABILITY
from xsalt_cli import eval as eval_script
from xsalt_cli import train

KEYS = [*TINY, *LISTS, "distill.layer=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nli(tmp_path_factory.mktemp("data"), train=64, dev=400)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, evaluated by one process."""
    folder = tmp_path_factory.mktemp("runs")
    keys = ["--task", "xnli", f"data.root={data}", "max_updates=4", *KEYS]
    found = {}
    for name, criterion in (("labels", "cross_entropy"), ("tokens", "masked_lm")):
        found[name] = folder / name
        assert train.main([*keys, "--criterion", criterion, f"run={found[name]}"]) == 0
    return found


def content(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    assert results == json.loads((run / "results" / "test.json").read_text())
    results.pop("train")
    return results | {path.name: path.read_bytes() for path in (run / "predictions").glob("test-*.tsv")}


def cleared(runs: Sequence[Path]) -> None:
    for run in runs:
        for path in (run / "results.json", run / "results" / "test.json", *(run / "predictions").glob("test-*.tsv")):
            path.unlink()


def quality(run: Path, cache: Path) -> dict[str, Any]:
    """How well a run's data is augmented, and the tables that it made: that of the training set and that of dev."""
    tables = sorted(cache.glob("substitutions/*"))
    assert len(tables) == 2
    found = {
        f"{table.name}/{name}": (table / name).read_bytes() for table in tables for name in (IDS, PROBABILITY, MANIFEST)
    }
    return found | json.loads((run / "augmentation.json").read_text())


def test_results_and_predictions_of_three_ranks_are_those_of_one_process(
    runs: dict[str, Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    salt = [
        "--task",
        "xnli",
        "--augmenter",
        "codeswitch",
        f"data.root={data}",
        *KEYS,
        "max_updates=2",
        "eval.chrf=true",
    ]
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "one"))
    assert train.main([*salt, f"run={tmp_path / 'run-1'}"]) == 0
    capsys.readouterr()
    for run in runs.values():
        assert eval_script.main([str(run), "eval.split=test"]) == 0
    shown = capsys.readouterr().out
    expected = {name: content(run) for name, run in runs.items()}
    assert len(expected["labels"]["languages"]) == 3 and 0 < expected["tokens"]["average"] < 1
    cleared(list(runs.values()))

    jobs = [["eval", str(run), "eval.split=test"] for run in runs.values()]
    jobs.append(["train", *salt, f"run={tmp_path / 'run-3'}"])
    out, err = torchrun(3, "scripts", *map(json.dumps, jobs), XSALT_CACHE=str(tmp_path / "few"))
    assert {name: content(run) for name, run in runs.items()} == expected
    assert out.startswith(shown)
    assert err.count("substitutions: scored") == 2
    assert quality(tmp_path / "run-3", tmp_path / "few") == quality(tmp_path / "run-1", tmp_path / "one")
