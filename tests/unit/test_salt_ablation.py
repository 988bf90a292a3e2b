"""The study of examples/salt_ablation: its data, its list of runs, its tables. Trains nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from xsalt.errors import UserError
from xsalt_cli.front import compose
from xsalt_cli.train import SCRIPT

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "salt_ablation"
LABELS = ("entailment", "neutral", "contradiction")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The example's modules, which import each other as scripts do; forgotten afterwards."""
    names = ("studies", "prepare", "table", "run")
    monkeypatch.syspath_prepend(str(FOLDER))
    loaded: dict[str, ModuleType] = {name: __import__(name) for name in names}
    yield SimpleNamespace(**loaded)
    for name in names:
        del sys.modules[name]


STUDIES = """
words: --task xnli data.root={data}/xnli
studies:
  small:
    about: a small one
    words: epochs=1
    seeds: [1, 2, 3]
    arms:
      none: --augmenter none
      salt: [--augmenter, "codeswitch,mixup", epochs=2]
"""


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    path = tmp_path / "arms.yaml"
    path.write_text(STUDIES, encoding="utf-8")
    return path


# prepare.py


def write_data(folder: Path, languages: tuple[str, ...], rows: int = 12) -> None:
    """XNLI of premises with three rows each, PAWS-X with every tenth id missing in French, and training pairs."""
    for name in ("xnli", "pawsx", "nli_en"):
        (folder / name).mkdir(parents=True)
    for language in languages:
        lines = ["premise\thypothesis\tlabel"]
        lines += [f"{language} premise {i // 3}\t{language} hypothesis {i}\t{LABELS[i % 3]}" for i in range(rows)]
        (folder / "xnli" / f"dev-{language}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for language in ("en", "fr"):
        lines = ["id\tsentence1\tsentence2\tlabel"]
        kept = [i for i in range(1300, 1700) if language == "en" or i % 10]
        lines += [f"{i}\t{language} one {i}\t{language} two {i}\t{i % 2}" for i in kept]
        (folder / "pawsx" / f"dev-{language}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number, name in enumerate(("lingnli_train", "mnli", "taxinli_mnli")):
        lines = ["premise\thypothesis\tlabel"]
        lines += [f"text {number} {i}\tclaim {i}\t{LABELS[i % 3]}" for i in range(30)]
        lines += ['"EN premise 2."\tleaks\tneutral', "text 0 0\tclaim 0\tentailment"]
        (folder / "nli_en" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path, scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scripts.prepare, "LANGUAGES", ("de", "en"))
    monkeypatch.setattr(scripts.prepare, "ROWS", 12)
    monkeypatch.setattr(scripts.prepare, "SEARCH_ROWS", 6)
    write_data(tmp_path / "data", ("de", "en"))
    return tmp_path / "data"


def lines(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def test_search_and_confirmation_share_no_row_and_no_premise(
    data: Path, tmp_path: Path, scripts: SimpleNamespace
) -> None:
    assert scripts.prepare.main([str(data), "--out", str(tmp_path / "out"), "--pairs", "30"]) == 0
    for language in ("de", "en"):
        dev, test = (lines(tmp_path / "out" / "xnli" / f"{split}-{language}.tsv") for split in ("dev", "test"))
        assert dev + test == lines(data / "xnli" / f"dev-{language}.tsv")
        assert len(dev) == len(test) == 6 and not {row[0] for row in dev} & {row[0] for row in test}


def test_training_pairs_are_balanced_different_and_of_no_held_out_premise(
    data: Path, tmp_path: Path, scripts: SimpleNamespace
) -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        words = [str(data), "--out", str(tmp_path / out), "--pairs", "31", "--seed", seed]
        assert scripts.prepare.main(words) == 0
    sample, full = (lines(tmp_path / "a" / "xnli" / f"{name}-en.tsv") for name in ("train", "full"))
    assert sorted(sum(row[2] == label for row in sample) for label in LABELS) == [10, 10, 11]
    assert len(full) == len({tuple(row) for row in full}) == 90
    assert not [row for row in full if "premise" in row[0].lower()]
    names = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.tsv")]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    other = lines(tmp_path / "c" / "xnli" / "train-en.tsv")
    assert sorted(map(tuple, other)) != sorted(map(tuple, sample))


def test_pawsx_is_split_by_the_same_ids_in_all_languages(data: Path, tmp_path: Path, scripts: SimpleNamespace) -> None:
    assert scripts.prepare.main([str(data), "--out", str(tmp_path / "out"), "--pairs", "30"]) == 0
    found = {path.stem: [int(row[0]) for row in lines(path)] for path in (tmp_path / "out" / "pawsx").iterdir()}
    assert found == {
        "train-en": list(range(1300, 1400)),
        "dev-en": list(range(1400, 1600)),
        "test-en": list(range(1600, 1700)),
        "test-fr": [i for i in range(1600, 1700) if i % 10],
    }


def break_label(data: Path) -> None:
    path = data / "xnli" / "dev-de.tsv"
    path.write_text(path.read_text().replace("hypothesis 4\tneutral", "hypothesis 4\tentailment"))


def break_row(data: Path) -> None:
    path = data / "nli_en" / "mnli.tsv"
    path.write_text(path.read_text().replace("claim 7\tneutral", "claim 7\tmaybe"))


def cut_xnli(data: Path) -> None:
    path = data / "xnli" / "dev-de.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


@pytest.mark.parametrize(
    ("breaking", "pairs", "message"),
    [
        (break_label, "30", "dev-de.tsv:6: another label than in English"),
        (break_row, "30", "mnli.tsv:9: label 'maybe' is not one of"),
        (cut_xnli, "30", "dev-de.tsv: 11 rows, XNLI dev has 12"),
        (lambda data: (data / "pawsx" / "dev-fr.tsv").unlink(), "30", "pawsx: holds 1 of the files"),
        (lambda data: None, "600", "pairs of label entailment too few"),
        (lambda data: None, "2", "--pairs 2: at least 3"),
    ],
)
def test_bad_data_is_one_line_and_nothing_is_written(
    data: Path,
    tmp_path: Path,
    scripts: SimpleNamespace,
    breaking: Any,
    pairs: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaking(data)
    assert scripts.prepare.main([str(data), "--out", str(tmp_path / "out"), "--pairs", pairs]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("prepare.py: error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# studies.py, run.py


def test_words_of_file_study_arm_and_set_follow_each_other(studies: Path, scripts: SimpleNamespace) -> None:
    study = scripts.studies.find_study("small", studies)
    runs = study.runs(["salt"], [7], ["device=cpu"])
    assert len(runs) == 1
    assert runs[0].command_line(Path("d"), Path("w")) == [
        *("--task", "xnli", "data.root=d/xnli", "epochs=1", "--augmenter", "codeswitch,mixup", "epochs=2"),
        *("device=cpu", "seed=7"),
    ]


def test_a_stopped_study_has_whole_pairs(studies: Path, scripts: SimpleNamespace) -> None:
    runs = scripts.studies.find_study("small", studies).runs()
    assert [(run.seed, run.arm) for run in runs[:4]] == [(1, "none"), (1, "salt"), (2, "none"), (2, "salt")]
    assert len(runs) == 6


def result(run: Any, accuracies: dict[str, float], **more: Any) -> dict[str, Any]:
    scores = list(accuracies.values())
    return {
        "study": run.study,
        "arm": run.arm,
        "seed": run.seed,
        "words": list(run.words),
        "more": list(run.more),
        "source_languages": ["en"],
        "languages": {language: {"accuracy": score, "n": 1000} for language, score in accuracies.items()},
        "average": float(np.mean(scores)),
        "average_without_source": float(np.mean([accuracies[language] for language in accuracies if language != "en"])),
        "device": "cpu",
        "switch_rate": None,
        **more,
    }


def test_a_result_of_other_words_is_refused_unless_they_change_no_result(
    studies: Path, tmp_path: Path, scripts: SimpleNamespace
) -> None:
    module = scripts.studies
    study = module.find_study("small", studies)
    run = study.runs(more=["device=cuda"])[0]
    module.write_result(run.result(tmp_path), result(run, {"en": 0.7, "fr": 0.6}))
    assert module.read_result(study.runs()[0], tmp_path) is not None
    with pytest.raises(UserError, match=r"none-s1\.json: made with other words .*\(dropout=0\): give the changed arm"):
        module.read_result(study.runs(more=["dropout=0"])[0], tmp_path)
    run.result(tmp_path).write_text("{}")
    with pytest.raises(UserError, match=r"none-s1\.json: lacks average"):
        module.read_result(run, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("about:", "abuot:", "small: unknown key 'abuot': did you mean 'about'"),
        ("[1, 2, 3]", "[1, 1]", "one is there twice"),
        ("[1, 2, 3]", "5", "a list of whole numbers"),
        ("arms:", "baseline: nothing\n    arms:", "baseline 'nothing' is no arm"),
        ("salt:", "a/b:", "arm 'a/b' names files"),
        ("epochs=1", "[1, 2]", "words of a command line are needed"),
        ("words: epochs", "words: 'x' epochs", "no YAML"),
    ],
)
def test_a_wrong_study_is_named(studies: Path, scripts: SimpleNamespace, old: str, new: str, message: str) -> None:
    studies.write_text(studies.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        scripts.studies.read_studies(studies)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smal"], "no study 'smal': did you mean 'small'"),
        (["small", "--arms", "slat"], "no arm 'slat': did you mean 'salt'"),
        (["small", "--set", "seed=3"], "--set seed=3"),
        (["small", "--jobs", "0"], "--jobs 0"),
    ],
)
def test_a_wrong_request_is_one_line_before_anything_runs(
    studies: Path,
    tmp_path: Path,
    scripts: SimpleNamespace,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = ["--studies", str(studies), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert scripts.run.main([*words, *work]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_seeds_are_lists_and_ranges(scripts: SimpleNamespace) -> None:
    assert scripts.run.numbers("1-3,7") == [1, 2, 3, 7]


def test_the_studies_that_come_with_it_are_read(scripts: SimpleNamespace) -> None:
    found = scripts.studies.read_studies()
    assert set(found) == {"search", "xnli", "xnli-full", "pawsx", "mlm-encoder"}
    assert all(study.baseline == "none" for study in found.values())
    for name in ("xnli", "xnli-full", "pawsx", "mlm-encoder"):
        assert len(found[name].seeds) >= 5
        assert not set(found[name].seeds) & set(found["search"].seeds)
        assert all("eval.split=test" in words for words in found[name].arms.values())
    assert all("eval.split=dev" in words for words in found["search"].arms.values())


def test_every_arm_that_comes_with_it_is_a_command_line_of_xsalt_train(scripts: SimpleNamespace) -> None:
    for study in scripts.studies.read_studies().values():
        hashes = {}
        for run in study.runs(seeds=study.seeds[:1]):
            hashes[compose(SCRIPT, run.command_line(Path("data"), Path("work"))).hash] = run.name
        assert len(hashes) == len(study.arms), "two arms are the same experiment"


# table.py


@pytest.fixture
def results(studies: Path, tmp_path: Path, scripts: SimpleNamespace) -> Path:
    """Per cent: none 60, 61, 62 in French and 50 in Thai; salt gains 1, 2, 3 in French, 0 in Thai; English 70, 71."""
    folder = tmp_path / "results"
    for run in scripts.studies.find_study("small", studies).runs():
        salt = run.arm == "salt"
        french = (59 + run.seed + (run.seed if salt else 0)) / 100
        made = result(run, {"en": 0.71 if salt else 0.70, "fr": french, "th": 0.5}, switch_rate=0.25 if salt else None)
        scripts.studies.write_result(run.result(folder), made)
    return folder


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_the_numbers_of_the_table_are_those_worked_out_by_hand(
    studies: Path, results: Path, tmp_path: Path, scripts: SimpleNamespace
) -> None:
    out = tmp_path / "table.md"
    words = ["small", "--studies", str(studies), "--results", str(results), "--out", str(out)]
    assert scripts.table.main(words) == 0
    rows = {line.split("|")[1].strip(): cells(line) for line in out.read_text().splitlines() if line.startswith("| ")}
    # without source: gains 0.5, 1, 1.5: t = 1 / (0.5 / sqrt(3)), two degrees of freedom
    p = stats.ttest_1samp([0.5, 1.0, 1.5], 0.0).pvalue
    assert rows["none"][:2] == ["none", "60.33 ± 0.33"]  # averages 60, 60 1/3, 60 2/3
    assert rows["none"][6] == "55.50 ± 0.50" and rows["none"][9] == "70.00 ± 0.00"
    assert rows["salt"][1:3] == ["61.33 ± 0.67", "+1.00"]  # gains 2/3, 1, 4/3
    half = stats.t.ppf(0.975, 2) / 3 / np.sqrt(3)
    assert rows["salt"][3] == f"{1 - half:+.2f} to {1 + half:+.2f}"
    assert rows["salt"][4:6] == [f"{stats.ttest_1samp([2 / 3, 1, 4 / 3], 0).pvalue:.3f}", "–"]
    assert rows["salt"][6:9] == ["56.50 ± 1.00", "+1.00", f"{p:.3f}"]
    assert rows["salt"][9:12] == ["71.00 ± 0.00", "+1.00", "–"]
    assert rows["salt"][12:] == ["25 %", "3"]
    assert rows["fr"] == ["fr", "seen", "61.00 ± 1.00", f"+2.00 ({stats.ttest_1samp([1, 2, 3], 0).pvalue:.3f})"]
    assert rows["th"] == ["th", "unseen", "50.00 ± 0.00", "+0.00 (–)"]
    assert rows["en"][:2] == ["en", "source"]


def test_gains_are_against_the_baseline_asked_for(
    studies: Path, results: Path, scripts: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["small", "--studies", str(studies), "--results", str(results), "--baseline"]
    assert scripts.table.main([*words, "salt"]) == 0
    rows = {line.split("|")[1].strip(): cells(line) for line in capsys.readouterr().out.splitlines() if "|" in line}
    assert rows["salt"][2] == "–" and rows["none"][2] == "-1.00"
    assert scripts.table.main([*words, "slat"]) == 2
    assert "has no arm 'slat': did you mean 'salt'?" in capsys.readouterr().err


def test_only_pairs_with_the_same_seed_are_compared(
    studies: Path, results: Path, scripts: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "small" / "none-s3.json").unlink()
    assert scripts.table.main(["small", "--studies", str(studies), "--results", str(results)]) == 0
    row = next(cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| salt "))
    assert row[2] == "+0.83" and row[-1] == "3 (2 pairs)"  # gains 2/3 and 1
    (results / "small" / "none-s2.json").unlink()
    assert scripts.table.main(["small", "--studies", str(studies), "--results", str(results)]) == 0
    row = next(cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| salt "))
    assert row[2:6] == ["+0.67", "–", "–", "–"], "one pair has a gain and no test"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": ["dropout=0"]}, "made with other words than seed 1"),
        ({"more": ["dropout=0"]}, "made with another --set"),
        ({"table": "c" * 64}, "made with another substitution table"),
        (
            {"languages": {"en": {"accuracy": 0.7, "n": 5}, "fr": {"accuracy": 0.7, "n": 5}}},
            "on other rows or languages",
        ),
    ],
)
def test_results_that_do_not_compare_are_refused(
    studies: Path,
    results: Path,
    scripts: SimpleNamespace,
    change: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed, changed in ((1, {"table": "b" * 64}), (2, {"table": "b" * 64} | change)):
        path = results / "small" / f"salt-s{seed}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert scripts.table.main(["small", "--studies", str(studies), "--results", str(results)]) == 2
    assert message in capsys.readouterr().err


def test_a_study_without_results_says_what_makes_them(
    studies: Path, tmp_path: Path, scripts: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scripts.table.main(["small", "--studies", str(studies), "--results", str(tmp_path / "no")]) == 2
    assert "no result of none: run.py small makes them" in capsys.readouterr().err
