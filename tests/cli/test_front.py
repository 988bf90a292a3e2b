"""The command line: two spellings of one configuration, help, plug-ins, sweeps."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import ROOT, Run
from xsalt_cli.guard import Terminated, guard
from xsalt_cli.train import main as train

LIGHT = "import sys; import {module}; print(*sorted({{'torch', 'hydra', 'omegaconf', 'numpy'}} & set(sys.modules)))"


@pytest.mark.parametrize("module", ["xsalt", "xsalt.registry", "xsalt.components", "xsalt.config", "xsalt_cli.train"])
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    code = LIGHT.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(("script", "words"), [("train", ["--help"]), ("list", []), ("list", ["--json"])])
def test_help_and_list_answer_within_a_second(run: Run, script: str, words: list[str]) -> None:
    seconds = []
    for _ in range(3):  # the best of three: the machine has other work
        start = time.perf_counter()
        assert run(script, *words).code == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0


def test_help_starts_with_an_example_and_shows_every_key(call: Run) -> None:
    text = call("train", "--help").out
    assert text.startswith("example: xsalt-train --task xnli")
    for name in ("seed=1", "batch.size=32", "optim.warmup=0.06", "pretrained=e5-small", "--user-dir", "codeswitch"):
        assert name in text


def test_help_shows_the_keys_of_the_components_named(call: Run, toys: list[str]) -> None:
    text = call("train", "--help", *toys, "--augmenter", "noise").out
    assert "augmenter noise: Random words." in text
    assert "augmenter.noise.rate=0.25" in text
    assert "share of the tokens" in text
    assert "Words that are inserted." in text
    assert "model.layers=4" in text


def configuration(call: Run, *words: str) -> dict[str, object]:
    result = call("train", *words, "--cfg", "job")
    assert result.code == 0, result.err
    parsed = yaml.safe_load(result.out)
    assert isinstance(parsed, dict)
    return parsed


def test_both_spellings_give_one_configuration(call: Run, toys: list[str]) -> None:
    own, names = toys[:2], ["task=emotion", "model=toy", "criterion=[toy_loss]"]
    flags = configuration(call, *toys, "--augmenter", "noise,drop", "languages=fr,de", "augmenter.drop.rate=0.5")
    keys = configuration(call, *own, *names, "augmenter=[noise,drop]", "languages=[fr,de]", "augmenter.drop.rate=0.5")
    assert flags == keys
    assert list(flags["augmenter"]) == ["noise", "drop"]  # type: ignore[call-overload]
    assert flags["languages"] == ["fr", "de"]
    assert flags["model"] == {"name": "toy", "layers": 4}


def test_builtin_names_compose(call: Run) -> None:
    flags = ["--task", "xnli", "--augmenter", "codeswitch,mixup", "--criterion", "cross_entropy,target_language_mlm"]
    parsed = configuration(call, *flags)
    assert list(parsed["augmenter"]) == ["codeswitch", "mixup"]  # type: ignore[call-overload]
    assert list(parsed["criterion"]) == ["cross_entropy", "target_language_mlm"]  # type: ignore[call-overload]
    assert list(parsed["task"]) == ["xnli"]  # type: ignore[call-overload]


@pytest.mark.parametrize("spelling", [["--augmenter", "none"], ["augmenter=none"], ["augmenter=[]"], []])
def test_no_augmenter_has_these_spellings(call: Run, toys: list[str], spelling: list[str]) -> None:
    assert configuration(call, *toys, *spelling)["augmenter"] == {}


@pytest.mark.parametrize(
    "path",
    ["/a=b", "/a(b)/c", "/~a", "/données/été", "/with space", "/it's", "/a$b", "/a,b", "C:\\x\\", "/a:b", '/q"q', "#x"],
)
def test_any_path_reaches_the_configuration_as_it_was_typed(call: Run, toys: list[str], path: str) -> None:
    data = configuration(call, *toys, f"data.root={path}")["data"]
    assert data["root"] == path  # type: ignore[index]


def test_lists_of_odd_paths_are_split_at_commas_outside_of_quotes(call: Run, toys: list[str]) -> None:
    data = configuration(call, *toys, "data.train=/a=b/x.tsv,/c d/é.tsv,'/e,f.tsv'")["data"]
    assert data["train"] == ["/a=b/x.tsv", "/c d/é.tsv", "/e,f.tsv"]  # type: ignore[index]


def test_interpolation_and_keys_of_a_mapping_work(call: Run, toys: list[str]) -> None:
    words = ["seed=7", "run=runs/s${seed}", "--augmenter", "noise", "augmenter.noise.table.fr=oui"]
    parsed = configuration(call, *toys, *words)
    assert parsed["run"] == "runs/s7"
    assert parsed["augmenter"]["noise"]["table"] == {"fr": "oui"}  # type: ignore[index]


def test_composing_leaves_no_file_behind(call: Run, toys: list[str], tmp_path: Path) -> None:
    configuration(call, *toys)
    assert list((tmp_path / "work").iterdir()) == []


TASK = '''
from xsalt.registry import TASKS
from xsalt.tasks.pairs import ClassificationTask


@TASKS.register("emotion")
class Emotion(ClassificationTask):
    """Feelings in a sentence."""

    labels = ("joy", "anger", "fear")
    columns = ("text", "label")
'''


def test_a_task_of_ones_own_is_listed_and_composes(call: Run, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "emotion.py").write_text(TASK, encoding="utf-8")
    rows = json.loads(call("list", "--json", "--user-dir", str(own), "task").out)
    assert {"emotion", "mlm", "pairs", "pawsx", "xnli"} <= {row["name"] for row in rows}
    assert next(row for row in rows if row["name"] == "emotion")["description"] == "Feelings in a sentence."
    assert list(configuration(call, "--user-dir", str(own), "--task", "emotion")["task"]) == ["emotion"]  # type: ignore[call-overload]


def install(folder: Path, name: str, entry: str, source: str | None) -> None:
    """What pip leaves of a distribution with one entry point."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry, encoding="utf-8")
    if source is not None:
        (folder / f"{name}.py").write_text(source, encoding="utf-8")


PLUGIN = """
from dataclasses import dataclass
@dataclass
class C:
    rate: float = 0.5
class Shuffle:
    Config = C
"""


def test_an_installed_plugin_is_listed_and_composes(run: Run, toys: list[str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "shuffler", "[xsalt.augmenters]\nshuffle = shuffler:Shuffle\n", PLUGIN)
    assert "shuffle" in run("list", path=site).out
    result = run("train", *toys, "--augmenter", "shuffle", "augmenter.shuffle.rate=0.75", "--cfg", "job", path=site)
    assert result.code == 0, result.err
    assert yaml.safe_load(result.out)["augmenter"] == {"shuffle": {"rate": 0.75}}


def test_a_broken_plugin_breaks_neither_the_list_nor_other_components(
    run: Run, toys: list[str], tmp_path: Path
) -> None:
    site = tmp_path / "site"
    install(site, "gone", "[xsalt.tasks]\ngone = gone_module:Gone\n", None)
    install(site, "sick", "[xsalt.augmenters]\nsick = sick:Sick\n", "import nothing_of_this_name\n")
    listing = run("list", path=site)
    assert listing.code == 0
    assert "broken: no module 'gone_module'" in listing.out
    assert "xnli" in listing.out
    assert run("train", *toys, "--cfg", "job", path=site).code == 0
    result = run("train", *toys, "--augmenter", "sick", "--cfg", "job", path=site)
    assert result.code == 2
    assert "augmenter 'sick' (sick:Sick) fails to load" in result.last


def test_a_plugin_that_takes_a_builtin_name_is_reported_by_the_list(run: Run, tmp_path: Path) -> None:
    install(tmp_path / "site", "thief", "[xsalt.tasks]\nxnli = thief:X\n", PLUGIN)
    result = run("list", path=tmp_path / "site")
    assert result.code == 0
    assert "registered twice: by xsalt.tasks.xnli:XNLI and by thief:X" in result.out


def test_list_by_kind_and_a_kind_that_does_not_exist(call: Run) -> None:
    rows = json.loads(call("list", "augmenter", "--json").out)
    assert {row["kind"] for row in rows} == {"augmenter"}
    assert {"codeswitch", "mixup"} <= {row["name"] for row in rows}
    assert "unknown kind 'augmentr'" in call("list", "augmentr").last


SWEEP = """
import json, sys
from xsalt.errors import UserError
from xsalt_cli.front import Script, guard, launch

def job(composed):
    train = composed.train
    print(json.dumps([str(composed.run), composed.resolved["augmenter"], train.seed, train.languages]))
    if composed.train.seed == 13:
        raise UserError("seed 13 is unlucky")

sys.exit(guard("xsalt-train", lambda: launch(Script("xsalt-train", "", ""), None, job)))
"""


@pytest.fixture
def sweep(tmp_path: Path, toys: list[str]):  # type: ignore[no-untyped-def]
    (tmp_path / "sweep.py").write_text(SWEEP, encoding="utf-8")

    def run_sweep(*words: str) -> tuple[int, list[list[object]], str]:
        done = subprocess.run(
            [sys.executable, str(tmp_path / "sweep.py"), *toys, "--multirun", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    return run_sweep


def test_multirun_runs_every_combination_each_in_its_own_folder(sweep, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, jobs, err = sweep("--augmenter", "none,noise", "seed=1,2", "languages=[fr,de]", "augmenter.noise.rate=0.5")
    assert code == 0, err
    assert [job[2] for job in jobs] == [1, 2, 1, 2]
    assert [list(job[1]) for job in jobs] == [[], [], ["noise"], ["noise"]]
    assert jobs[2][1]["noise"]["rate"] == 0.5
    assert all(job[3] == ["fr", "de"] for job in jobs)
    folders = [job[0] for job in jobs]
    assert len(set(folders)) == 4
    assert folders[0].startswith(os.path.join("runs", "emotion-none-s1-"))
    assert not (tmp_path / "multirun").exists()
    assert not (tmp_path / "outputs").exists()


def test_multirun_sweeps_over_lists_into_the_parent_folder_given(sweep) -> None:  # type: ignore[no-untyped-def]
    code, jobs, err = sweep("augmenter=none,[noise],[noise,drop]", "run=sweep (1)")
    assert code == 0, err
    assert [list(job[1]) for job in jobs] == [[], ["noise"], ["noise", "drop"]]
    assert all(job[0].startswith(os.path.join("sweep (1)", "emotion-no")) for job in jobs)


def test_a_failing_job_of_a_sweep_does_not_stop_the_others_but_fails_the_sweep(sweep) -> None:  # type: ignore[no-untyped-def]
    code, jobs, err = sweep("seed=12,13,14")
    assert code == 2
    assert [job[2] for job in jobs] == [12, 13, 14]
    assert err.strip().splitlines()[-1] == "xsalt-train: error: seed 13 is unlucky"
    assert "Traceback" not in err


@pytest.mark.skipif(importlib.util.find_spec("submitit") is not None, reason="submitit is installed")
def test_a_launcher_that_is_not_installed_names_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--task", "xnli", "--multirun", "seed=1,2", "hydra/launcher=submitit_slurm"]) == 2
    assert "needs submitit: pip install 'xsalt[slurm]'" in capsys.readouterr().err


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_library_that_fails_when_a_signal_interrupts_it_is_no_bug(
    stop: type[BaseException], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        try:
            raise stop
        finally:
            raise AttributeError("no lock to release")

    assert guard("xsalt-train", main) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
