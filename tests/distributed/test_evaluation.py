"""Evaluation is the same numbers, to the bit, however many ranks share it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.torchrun import torchrun
from tests.tiny import LISTS, TINY, write_nli
from xsalt_cli import eval as eval_script
from xsalt_cli import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nli(tmp_path_factory.mktemp("data"), train=64, dev=400)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, evaluated by one process."""
    folder = tmp_path_factory.mktemp("runs")
    keys = ["--task", "xnli", f"data.root={data}", "max_updates=4", *TINY, *LISTS]
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


@pytest.mark.parametrize("ranks", [2, 3])
def test_results_and_predictions_of_several_ranks_are_those_of_one_process(
    ranks: int, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for run in runs.values():
        assert eval_script.main([str(run), "eval.split=test"]) == 0
    shown = capsys.readouterr().out
    expected = {name: content(run) for name, run in runs.items()}
    assert len(expected["labels"]["languages"]) == 3 and 0 < expected["tokens"]["average"] < 1
    cleared(list(runs.values()))
    out, _ = torchrun(ranks, "scripts", *(json.dumps(["eval", str(run), "eval.split=test"]) for run in runs.values()))
    assert {name: content(run) for name, run in runs.items()} == expected
    assert out == shown
