"""Everything wrong on a command line is one line on stderr that names it, exit code 2 and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run
from xsalt.errors import UserError
from xsalt_cli.guard import guard


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["sed=3"], ["'sed'", "did you mean 'seed'"]),
        (["optim.wamup=0.1"], ["'optim.wamup'", "did you mean 'optim.warmup'"]),
        (["augmenter.noise.rat=0.1"], ["augmenter.noise.rat", "did you mean 'augmenter.noise.rate'"]),
        (["seed=abc"], ["seed='abc'", "an integer"]),
        (["seed=1.5"], ["seed=1.5", "an integer"]),
        (["epochs=true"], ["epochs=True", "an integer or null"]),
        (["optim.lr=fast"], ["optim.lr='fast'", "a number or null"]),
        (["dry_run=1"], ["dry_run=1", "true or false"]),
        (["languages={fr:1}"], ["languages[0]={'fr': 1}", "a text"]),
        (["augmenter.noise.rate=much"], ["augmenter.noise.rate='much'", "a number"]),
        (["batch.size=0"], ["batch.size=0", "at least 1"]),
        (["optim.lr=-1"], ["optim.lr=-1.0", "above 0"]),
        (["optim.warmup=1.5"], ["optim.warmup=1.5", "at most 1"]),
        (["dropout=1"], ["dropout=1.0", "below 1"]),
        (["seed=-1"], ["seed=-1", "at least 0"]),
        (["precision=fp8"], ["precision=fp8", "bf16, fp32"]),
        (["optim.schedule=linea"], ["optim.schedule=linea", "did you mean 'linear'"]),
        (["init_parts=encoder,head"], ["init_parts=head", "encoder, classifier, mlm_head"]),
        (["source=[]"], ["source", "source=en"]),
        (["data.root="], ["data.root is empty"]),
        (["data=folder"], ["'data' is a section", "data.root"]),
        (["+extra=1"], ["+extra", "extra=VALUE"]),
        (["~seed=1"], ["~seed", "seed=VALUE"]),
        (["seed=1,2"], ["seed=1,2", "--multirun"]),
        (["run=${sed}"], ["'sed'"]),
        (["languages=[fr"], ["languages=[fr", "bracket"]),
        (["model.name=bert"], ["model.name", "--model"]),
        (["hydra.run.dir=x"], ["hydra.run.dir", "--multirun"]),
        (["--augmentr", "noise"], ["--augmentr", "did you mean 'augmenter'"]),
        (["folder"], ["'folder' is not key=value"]),
        (["--cfg", "all"], ["--cfg", "job"]),
        (["--multirun"], ["--cfg", "--multirun"]),
        (["--task", "emotin"], ["unknown task 'emotin'", "did you mean 'emotion'", "xnli"]),
        (["--task", "emotion,xnli"], ["emotion,xnli", "--multirun"]),
        (["--criterion", "cross_entropi"], ["unknown criterion", "did you mean 'cross_entropy'"]),
        (["--model", "brt"], ["unknown model 'brt'", "did you mean 'bert'"]),
        (["--augmenter", "nois"], ["unknown augmenter 'nois'", "did you mean 'noise'"]),
        (["--augmenter", "none,noise"], ["'none' stands alone"]),
        (["--augmenter", "[noise"], ["[noise", "bracket"]),
        (["augmenter.drop.rate=1"], ["augmenter.drop.rate", "'drop' is not part of this run"]),
    ],
)
def test_what_is_wrong_is_named_in_one_line(call: Run, toys: list[str], words: list[str], parts: list[str]) -> None:
    result = call("train", *toys, "--augmenter", "noise", "--cfg", "job", *words)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert result.last.startswith("xsalt-train: error: ")
    for part in parts:
        assert part in result.last


def test_a_run_without_a_task_names_the_tasks(call: Run) -> None:
    result = call("train")
    assert result.code == 2
    assert "--task NAME" in result.last
    assert "xnli" in result.last


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("broken.py", "import nothing_of_this_name\n", ["broken.py:1", "nothing_of_this_name"]),
        ("wrong.py", "x = 1\ny = (\n", ["wrong.py:2", "SyntaxError"]),
        ("late.py", "\n\ndef f():\n    return 1 / 0\n\nf()\n", ["late.py:4", "ZeroDivisionError"]),
        ("json.py", "", ["json.py", "rename the file"]),
        ("notes.txt", "", ["no Python file"]),
        (
            "twice.py",
            "from xsalt.registry import TASKS\n@TASKS.register('xnli')\nclass Mine:\n    pass\n",
            ["twice.py", "'xnli' is registered twice", "xsalt.tasks.xnli:XNLI", "twice:Mine"],
        ),
    ],
)
@pytest.mark.parametrize("script", ["train", "list"])
def test_a_user_dir_that_fails_names_file_and_reason(
    call: Run, tmp_path: Path, script: str, file: str, text: str, parts: list[str]
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / file).write_text(text, encoding="utf-8")
    result = call(script, "--user-dir", str(tmp_path / "own"), *(["--task", "xnli"] if script == "train" else []))
    assert result.code == 2
    assert result.err.count("\n") == 1
    for part in parts:
        assert part in result.last


def test_a_user_dir_that_does_not_exist_is_named(call: Run, tmp_path: Path) -> None:
    assert "nowhere: does not exist" in call("list", "--user-dir", str(tmp_path / "nowhere")).last
    (tmp_path / "file.py").touch()
    assert "is a file, not a folder" in call("list", "--user-dir", str(tmp_path / "file.py")).last


def test_a_component_without_a_configuration_says_what_it_lacks(call: Run, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "bare.py").write_text(
        "from xsalt.registry import TASKS\n@TASKS.register('bare')\nclass Bare:\n    pass\n", encoding="utf-8"
    )
    result = call("train", "--user-dir", str(own), "--task", "bare")
    assert result.code == 2
    assert "'bare' (bare:Bare) has no Config" in result.last


def test_a_bug_shows_its_traceback_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard("xsalt-train", lambda: 1 // 0) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_interrupted_script_exits_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert guard("xsalt-train", interrupted) == 130
    assert capsys.readouterr().err == "xsalt-train: interrupted\n"


def test_an_error_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> int:
        raise UserError("this is\n  wrong")

    assert guard("xsalt-train", wrong) == 2
    assert capsys.readouterr().err == "xsalt-train: error: this is wrong\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; from xsalt_cli.train import main; sys.exit(main())"
    words = f"'{sys.executable}' -c '{code}' --help | head -1"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines()[-1].startswith("example:")
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_script_exits_2_in_a_process_of_its_own(run: Run) -> None:
    result = run("train", "--task", "xlni")
    assert result.code == 2
    assert result.last == (
        "xsalt-train: error: unknown task 'xlni': did you mean 'xnli'? known: mlm, pairs, pawsx, xnli"
    )
