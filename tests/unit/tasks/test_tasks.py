"""Tasks say which columns and labels they read; a user's own needs two lines."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xsalt.components import BUILT_INS
from xsalt.data.rows import NO_LABEL, Example
from xsalt.errors import UserError
from xsalt.registry import TASKS
from xsalt.tasks.mlm import MLM
from xsalt.tasks.pairs import ClassificationTask, Pairs, PairsConfig
from xsalt.tasks.pawsx import PAWSX
from xsalt.tasks.xnli import XNLI

NLI = "premise\thypothesis\tlabel\nA cat.\tAn animal.\tentailment\n"


def real_data() -> Path:
    root = Path(os.environ.get("XSALT_DATA") or Path(__file__).parents[4] / "shared" / "data")
    if not (root / "xnli" / "dev-en.tsv").is_file():
        pytest.skip(f"no real data in {root}: set XSALT_DATA to its folder")
    return root


class Emotion(ClassificationTask):
    labels = ("joy", "anger", "fear")
    columns = ("text", "label")


@pytest.mark.parametrize("name", sorted(BUILT_INS["task"]))
def test_every_task_has_a_configuration_with_defaults(name: str) -> None:
    task = TASKS.get(name)
    assert dataclasses.is_dataclass(task.Config)
    assert task(task.Config(), None, "stop").skipped == {}


def test_tasks_are_known_without_torch() -> None:
    modules = "xsalt.tasks.xnli, xsalt.tasks.pairs, xsalt.tasks.pawsx, xsalt.tasks.mlm"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_task_of_ones_own_is_labels_and_columns(tmp_path: Path) -> None:
    (tmp_path / "train-en.tsv").write_text("text\tlabel\nI laugh\tjoy\n")
    (tmp_path / "dev-fr.jsonl").write_text('{"text": "Je crains", "label": "Fear"}\n')
    task = Emotion(None, tmp_path)
    assert task.splits() == ["train", "dev"]
    assert (task.languages("train"), task.languages("dev"), task.languages("test")) == (["en"], ["fr"], [])
    assert task.read("train", "en") == [Example("I laugh", None, 0, "0")]
    assert task.read("dev", "fr") == [Example("Je crains", None, 2, "0")]


def test_pairs_takes_columns_and_labels_from_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "test-sw.tsv").write_text("question\tanswer\tgood\nq\ta\tYes\n")
    task = Pairs(PairsConfig(columns=["question", "answer", "good"], labels=["yes", "no"]), tmp_path)
    assert task.labels == ("yes", "no")
    assert task.read("test", "sw") == [Example("q", "a", 0, "0")]


@pytest.mark.parametrize(
    ("columns", "labels", "reason"),
    [
        (["label"], ["a", "b"], "one or two text columns and the label column"),
        (["a", "b", "c", "d"], ["a", "b"], "one or two text columns and the label column"),
        (["text", "text"], ["a", "b"], "one or two text columns and the label column"),
        (["text", "label"], ["a"], "at least two different labels"),
        (["text", "label"], ["a", "A "], "at least two different labels"),
    ],
)
def test_columns_and_labels_that_make_no_task_are_refused(columns: list[str], labels: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Pairs(PairsConfig(columns=columns, labels=labels))


def test_training_files_are_read_in_order_by_the_language_of_their_names(tmp_path: Path) -> None:
    for name, label in (("b.tsv", "neutral"), ("a-sw.tsv", "entailment"), ("a.jsonl", "contradiction")):
        line = (
            f"p\th\t{label}\n" if name.endswith("tsv") else f'{{"premise": "p", "hypothesis": "h", "label": "{label}"}}'
        )
        (tmp_path / name).write_text(line)
    paths = [tmp_path / name for name in ("b.tsv", "a-sw.tsv", "a.jsonl")]
    read = XNLI().read_files(paths, ("en", "sw"))
    assert {language: [e.label for e in rows] for language, rows in read.items()} == {"en": [1, 2], "sw": [0]}
    with pytest.raises(
        UserError, match=r"a-sw\.tsv: is in language 'sw', which is not a source language: source=en,sw\?"
    ):
        XNLI().read_files(paths, ("en",))


def test_rows_of_training_files_may_name_their_language(tmp_path: Path) -> None:
    (tmp_path / "all.tsv").write_text(
        "language\tgold_label\tsentence1\tsentence2\nen\tneutral\ta\tb\nsw\tneutral\tc\td\n"
    )
    read = XNLI().read_files([tmp_path / "all.tsv"], ("en", "sw"))
    assert {language: rows[0].first for language, rows in read.items()} == {"en": "a", "sw": "c"}


def test_skipped_rows_are_counted_by_the_task(tmp_path: Path) -> None:
    (tmp_path / "dev-en.tsv").write_text(NLI + "only one column\n")
    with pytest.raises(UserError, match=r"dev-en\.tsv:3: 1 column, 3 expected"):
        XNLI(None, tmp_path).read("dev", "en")
    task = XNLI(None, tmp_path, "skip")
    assert len(task.read("dev", "en")) == 1
    assert task.skipped == {f"{tmp_path / 'dev-en.tsv'} (bad rows)": 1}
    assert len(task.log.messages) == 1


def test_a_task_without_embedded_data_asks_for_a_folder() -> None:
    task = PAWSX()
    assert task.splits() == task.languages("dev") == []  # data.train alone may be enough
    with pytest.raises(UserError, match=r"data\.root is not set"):
        task.read("dev", "en")


def test_plain_text_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "fr.txt").write_text("Un chat.\n")
    (tmp_path / "news-de.txt").write_text("Eine Katze.\n")
    task = MLM(None, tmp_path)
    assert task.labels == ()
    assert task.read("train", "fr") == [Example("Un chat.", None, NO_LABEL, "0")]
    assert task.languages("dev") == []
    read = task.read_files([tmp_path / "fr.txt", tmp_path / "news-de.txt"], ("en", "fr", "de"))
    assert {language: len(rows) for language, rows in read.items()} == {"fr": 1, "de": 1}


def test_the_embedded_data_is_the_default_of_xnli() -> None:
    root = XNLI.default_root()
    assert XNLI().where == str(root)
    if not any(root.glob("test-*.tsv")):
        pytest.skip(f"no embedded data in {root} yet: run its generator")
    task = XNLI()
    assert len(task.languages("test")) == 15
    assert len({len(task.read("test", language)) for language in task.languages("test")}) == 1


def test_real_xnli_and_pawsx_are_read_whole() -> None:
    root = real_data()
    task = XNLI(None, root / "xnli")
    assert [len(task.read("dev", language)) for language in task.languages("dev")] == [2490] * 15
    task_pawsx = PAWSX(None, root / "pawsx")
    sizes = {language: len(task_pawsx.read("dev", language)) for language in task_pawsx.languages("dev")}
    assert sizes == {"de": 1932, "en": 2000, "es": 1962, "fr": 1992, "ja": 1980, "ko": 1965, "zh": 1984}
    assert task.skipped == task_pawsx.skipped == {}


def test_real_training_files_are_read_whole() -> None:
    root = real_data()
    files = sorted((root / "nli_en").glob("*.tsv"))
    rows = sum(file.read_bytes().count(b"\n") - 1 for file in files)
    assert len(XNLI().read_files(files, ("en",))["en"]) == rows
    yes_no = Pairs(PairsConfig(["premise", "question", "label"], ["yes", "no", "maybe"]))
    assert len(yes_no.read_files([root / "medical" / "pubmedqa.tsv"], ("en",))["en"]) == 1000
