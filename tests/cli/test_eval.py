"""xsalt-eval through its own main function: what it writes where, and what it leaves to training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny import TINY, write_nli
from xsalt_cli.eval import main
from xsalt_cli.train import main as train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nli(tmp_path_factory.mktemp("data"), train=32, dev=9)


def words(data: Path, run: Path, *more: str) -> list[str]:
    return ["--task", "xnli", f"data.root={data}", f"run={run}", "epochs=1", *TINY, *more]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert train(words(data, run)) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def last(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_evaluating_a_run_that_is_not_finished_does_not_finish_it(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "results")  # as after a signal: a checkpoint, and no results
    assert main([str(run)]) == 0
    assert json.loads((run / "results" / "dev.json").read_text())["train"]["finished"] is False
    assert train(words(data, run)) == 0
    assert "this run is finished" not in capsys.readouterr().err
    assert json.loads((run / "results" / "dev.json").read_text())["train"]["finished"] is True
    assert main([str(run), "eval.split=test"]) == 0
    assert train(words(data, run)) == 0
    assert "this run is finished" in capsys.readouterr().err


def test_results_go_where_they_are_asked_to_and_the_runs_own_stay(data: Path, run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main([str(run), f"run={tmp_path / 'out'}"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["split"] == "dev"
    assert (tmp_path / "out" / "predictions" / "dev-fr.tsv").read_bytes() == before[run / "predictions" / "dev-fr.tsv"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_results_of_other_data_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_nli(tmp_path / "other", train=8, dev=12)
    assert main([str(run), f"data.root={other}", "eval.split=test"]) == 0
    assert "warning: results of other data than" in capsys.readouterr().err
    assert json.loads((run / "results" / "test.json").read_text())["languages"]["fr"]["n"] == 12


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["pretrained=/nowhere"], "pretrained: the weights that are evaluated are those of"),
        (["tokenizer=/nowhere"], "tokenizer: the weights that are evaluated are those of"),
        (["--criterion", "target_language_mlm"], "has no masked-language-model head, which criterion"),
        (["eval.split=tset"], "eval.split=tset: "),
        (["run=/proc/nowhere"], "give the results a folder with run=DIR"),
        (["languages=fr,fr"], "languages=fr,fr: fr stands twice"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    run: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), *more]) == 2
    assert message in last(capsys)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nope")]) == 2
    assert last(capsys).startswith(f"xsalt-eval: error: {tmp_path / 'nope'}: no such folder")


def test_a_checkpoint_of_a_run_has_its_configuration(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(run / "checkpoints" / "best")]) == 0
    results = json.loads((tmp_path / "runs" / "eval-best" / "results.json").read_text())
    of_run = json.loads((run / "results.json").read_text())
    assert results["languages"] == of_run["languages"] and results["config_hash"] == of_run["config_hash"]


def test_what_ends_a_run_early_leaves_its_folder_to_another_configuration(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(words(data, tmp_path / "run", "batch.max_tokens=3")) == 2
    assert "max_tokens" in last(capsys)
    assert train(words(data, tmp_path / "run", "batch.max_tokens=300")) == 0


def test_a_dry_run_refuses_what_the_run_would_end_in(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(words(data, run, "seed=5", "dry_run=true")) == 2
    assert "made with another configuration, changed: seed" in last(capsys)
    broken = write_nli(tmp_path / "broken", train=32, dev=9)
    with (broken / "dev-fr.tsv").open("a", encoding="utf-8") as file:
        file.write("one field\n")
    for more in (["dry_run=true"], []):
        assert train(words(broken, tmp_path / "bad", *more)) == 2
        assert "dev-fr.tsv:11: " in last(capsys)
    assert not (tmp_path / "bad").exists(), "it is told before the training"


def test_sizes_of_a_checkpoint_are_its_own(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [word for word in words(data, tmp_path / "new") if not word.startswith(("model.", "pretrained="))]
    assert train([*small, f"pretrained={run}", "model.layers=3"]) == 2
    assert f"model.layers=3: {run}/checkpoints/" in last(capsys)
    assert train([*small, f"pretrained={run}", "model.layers=2"]) == 0
