"""Every augmenter with every criterion on every task, at tiny size, in this process."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.tiny import LISTS, TINY, WORDS, write_nli
from xsalt_cli.train import main

AUGMENTERS = ("none", "codeswitch", "mixup", "codeswitch,mixup")
CRITERIONS = ("cross_entropy", "target_language_mlm", "cross_entropy,target_language_mlm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data of each task; PAWS-X in its official layout, ``pairs`` as single sentences with two labels."""
    base = tmp_path_factory.mktemp("data")
    nli = write_nli(base / "xnli", train=32, dev=9)
    for language, words in WORDS.items():
        pawsx = base / "pawsx" / "x-final" / language
        pawsx.mkdir(parents=True)
        names = ("train.tsv", "dev_2k.tsv") if language == "en" else ("dev_2k.tsv",)
        for name in names:
            rows = [f"{i}\t{words[i % 10]} {words[(i + 1) % 10]}\t{words[i % 10]}\t{i % 2}" for i in range(16)]
            (pawsx / name).write_text("id\tsentence1\tsentence2\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
        (base / "pairs").mkdir(exist_ok=True)
        for split in ("train", "dev") if language == "en" else ("dev",):
            rows = [f"{words[i % 10]} {words[(i * 3) % 10]}\t{'good' if i % 10 < 5 else 'bad'}" for i in range(16)]
            (base / "pairs" / f"{split}-{language}.tsv").write_text(
                "text\tmood\n" + "\n".join(rows) + "\n", encoding="utf-8"
            )
    return {"xnli": nli, "pawsx": base / "pawsx", "pairs": base / "pairs"}


def run(task: str, folder: Path, run: Path, *more: str) -> Path:
    keys = [
        f"data.root={folder}",
        f"run={run}",
        "epochs=1",
        "distill.layer=0",
        "augmenter.codeswitch.threshold=0",
        *TINY,
        *LISTS,
    ]
    if task == "pairs":
        keys += ["task.pairs.columns=[text,mood]", "task.pairs.labels=[good,bad]"]
    if "codeswitch" not in " ".join(more):
        keys.remove("augmenter.codeswitch.threshold=0")
    assert main(["--task", task, *more, *keys]) == 0
    return run


@pytest.mark.parametrize(
    ("task", "augmenter", "criterion"), list(itertools.product(("xnli", "pawsx", "pairs"), AUGMENTERS, CRITERIONS))
)
def test_it_trains_and_evaluates_every_language(
    task: str, augmenter: str, criterion: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = run(task, folders[task], tmp_path / "run", "--augmenter", augmenter, "--criterion", criterion)
    results = json.loads((folder / "results.json").read_text())
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for row in losses for value in row.values())
    assert results["languages"]
    if criterion != "target_language_mlm":
        assert set(results["languages"]) == {"en", "fr", "ru"}
        assert (folder / "predictions" / "dev-ru.tsv").exists()
    if criterion == "target_language_mlm":
        before = load_file(folder / "checkpoints" / "best" / "model.safetensors")
        assert any(name.startswith("mlm_head") for name in before)


@pytest.mark.parametrize(
    ("criterion", "augmenter", "more"),
    [
        ("cross_entropy,consistency", "codeswitch", ["augmenter.codeswitch.clean=true"]),
        (
            "cross_entropy,consistency,target_language_mlm",
            "codeswitch,mixup",
            ["augmenter.codeswitch.clean=true", "augmenter.codeswitch.views=2", "augmenter.mixup.alpha=0.4"],
        ),
        (
            "cross_entropy,consistency,masked_lm",
            "codeswitch,mixup",
            [
                "augmenter.codeswitch.clean=true",
                "augmenter.codeswitch.choose=sample",
                "distill.k=2",
                "augmenter.mixup.between=views",
                "augmenter.mixup.where=after",
            ],
        ),
        ("cross_entropy,masked_lm", "mixup", ["augmenter.mixup.views=2", "augmenter.mixup.language_by=token"]),
        ("masked_lm", "codeswitch", ["augmenter.codeswitch.sampling=nearest", "augmenter.codeswitch.segments=alike"]),
        ("cross_entropy", "codeswitch", ["augmenter.codeswitch.ratio_epochs=1"]),
    ],
)
def test_views_and_their_criterions_go_together(
    criterion: str, augmenter: str, more: list[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = run("xnli", folders["xnli"], tmp_path / "run", "--augmenter", augmenter, "--criterion", criterion, *more)
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for row in losses for value in row.values())
    for name in criterion.split(","):
        assert ("loss" if name == criterion else f"{name}_loss") in losses[0]
    assert losses[-1]["switch_rate"] > 0
    assert any(name.startswith("switch_rate/") for name in losses[-1])


def test_an_augmenter_that_asks_for_synonyms_gets_a_table_of_them(folders: dict[str, Path], tmp_path: Path) -> None:
    keys = ["augmenter.codeswitch.synonyms=0.5", "augmenter.codeswitch.synonym_threshold=0"]
    folder = run("xnli", folders["xnli"], tmp_path / "run", "--augmenter", "codeswitch,mixup", *keys)
    languages = json.loads((folder / "augmentation.json").read_text())["languages"]
    assert set(languages) == {"en", "fr", "ru"}
    assert languages["en"]["switched"] > 0
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        assert row["switch_rate/en"] > 0


def test_frozen_parts_stay_as_they_are_and_others_learn(folders: dict[str, Path], tmp_path: Path) -> None:
    keys = ["--criterion", "target_language_mlm", "model.mlm_layer=1"]
    frozen = [*keys, "freeze=embeddings,encoder", "optim.weight_decay=0.1"]
    before = weights(run("xnli", folders["xnli"], tmp_path / "one", *frozen, "max_updates=1"))
    after = weights(run("xnli", folders["xnli"], tmp_path / "two", *frozen))
    free = weights(run("xnli", folders["xnli"], tmp_path / "free", *keys))
    for name, value in before.items():
        parts = [np.array_equal(value, other[name]) for other in (after, free)]
        if name.startswith(("embeddings", "encoder.layers.0")):
            assert parts == [True, False], name
        elif name.startswith("mlm_head.dense"):
            assert parts == [False, False], name
        elif name.startswith("encoder.layers.1"):  # above the layer that is read: neither computed nor trained
            assert parts == [True, True], name


def test_freezing_what_is_not_there_or_everything_is_an_error(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["--task", "xnli", f"data.root={folders['xnli']}", f"run={tmp_path / 'run'}", *TINY]
    for freeze, message in (("mlm_head", "has no mlm_head"), ("embeddings,encoder,classifier", "nothing to train")):
        assert main([*keys, f"freeze={freeze}"]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")


def test_codeswitch_with_ratio_0_is_bit_equal_to_none_and_above_0_is_not(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    plain = weights(run("xnli", folders["xnli"], tmp_path / "plain", "--augmenter", "none"))
    zero = weights(
        run("xnli", folders["xnli"], tmp_path / "zero", "--augmenter", "codeswitch", "augmenter.codeswitch.ratio=0")
    )
    half = weights(
        run("xnli", folders["xnli"], tmp_path / "half", "--augmenter", "codeswitch", "augmenter.codeswitch.ratio=0.5")
    )
    assert all(np.array_equal(plain[name], zero[name]) for name in plain)
    assert not all(np.array_equal(plain[name], half[name]) for name in plain)


def test_plain_text_trains_the_head_of_a_new_model(tmp_path: Path) -> None:
    data = tmp_path / "text"
    data.mkdir()
    for language, words in WORDS.items():
        lines = [" ".join(words[(i + j) % 10] for j in range(6)) for i in range(24)]
        (data / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (data / f"dev-{language}.txt").write_text("\n".join(lines[:6]) + "\n", encoding="utf-8")
    folder = tmp_path / "run"
    keys = [f"data.root={data}", f"run={folder}", "epochs=2", "source=en,fr,ru", "vocabulary.backend=corpus"]
    keys += [f"vocabulary.text={data}", "vocabulary.min_count=1", *TINY]
    assert main(["--task", "mlm", "--criterion", "target_language_mlm", *keys]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert set(results["languages"]) == {"en", "fr", "ru"}


def test_text_without_a_dev_split_trains_and_says_that_nothing_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "text"
    data.mkdir()
    (data / "en.txt").write_text("the cat sees the small green house\n" * 16, encoding="utf-8")
    keys = [f"data.root={data}", f"run={tmp_path / 'run'}", "epochs=1", *TINY]
    assert main(["--task", "mlm", "--criterion", "target_language_mlm", *keys]) == 0
    assert "nothing is evaluated" in capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["languages"] == {} and results["average"] is None


def test_a_criterion_that_needs_labels_is_refused_on_plain_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "text"
    data.mkdir()
    (data / "en.txt").write_text("one two three\n" * 8, encoding="utf-8")
    assert main(["--task", "mlm", f"data.root={data}", f"run={tmp_path / 'run'}", *TINY]) == 2
    assert "cross_entropy needs labels" in capsys.readouterr().err


def test_a_users_task_of_twenty_lines_trains_with_an_augmenter(tmp_path: Path) -> None:
    tasks, data = tmp_path / "tasks", tmp_path / "data"
    tasks.mkdir()
    data.mkdir()
    (tasks / "likeness.py").write_text(
        "from xsalt.registry import TASKS\n"
        "from xsalt.tasks.pairs import ClassificationTask\n\n"
        '@TASKS.register("likeness")\n'
        "class Likeness(ClassificationTask):\n"
        '    """Whether two sentences are alike."""\n\n'
        '    labels = ("same", "other")\n'
        '    columns = ("a", "b", "likeness")\n'
    )
    for language, words in WORDS.items():
        rows = [f"{words[i % 10]}\t{words[(i * i) % 10]}\t{('same', 'other')[i % 2]}" for i in range(16)]
        for split in ("train", "dev"):
            (data / f"{split}-{language}.tsv").write_text("a\tb\tlikeness\n" + "\n".join(rows) + "\n", encoding="utf-8")
    folder = tmp_path / "run"
    keys = [f"data.root={data}", f"run={folder}", "epochs=1", *TINY]
    flags = ["--user-dir", str(tasks), "--task", "likeness", "--augmenter", "codeswitch,mixup"]
    assert main([*flags, *keys]) == 0
    header = (folder / "predictions" / "dev-fr.tsv").read_text().splitlines()[0]
    assert header.split("\t")[3:] == ["same", "other"]


def test_several_criterions_log_their_weighted_total_as_the_loss(folders: dict[str, Path], tmp_path: Path) -> None:
    names = {"cross_entropy": 0.5, "target_language_mlm": 2.0}
    keys = [f"criterion.{name}.weight={weight}" for name, weight in names.items()]
    more = ["--criterion", ",".join(names), "batch.accumulate=2", "log_every=1"]
    folder = run("xnli", folders["xnli"], tmp_path / "run", *more, *keys)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        total = sum(weight * row[f"{name}_loss"] for name, weight in names.items())
        assert row["loss"] == pytest.approx(total, rel=1e-4)


def test_a_classifier_taken_from_another_run_keeps_its_classes_apart(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("pairs", folders["pairs"], tmp_path / "first")
    still = [f"init_from={first}", "init_parts=encoder,classifier", "max_updates=1", "optim.lr=1e-12"]
    still += [f"tokenizer={first / 'checkpoints' / 'best'}", "optim.weight_decay=0"]
    words = ["--task", "pairs", f"data.root={folders['pairs']}", "task.pairs.columns=[text,mood]", *TINY, *LISTS]
    again = tmp_path / "again"
    assert main([*words, *still, "task.pairs.labels=[bad,good]", f"run={again}", "epochs=1"]) == 0
    rows = [
        load_file(path / "checkpoints" / "best" / "model.safetensors")["classifier.out.weight"]
        for path in (first, again)
    ]
    np.testing.assert_allclose(rows[1], rows[0][::-1], atol=1e-9)
    other = [*words, *still, "task.pairs.labels=[bad,good,fair]", f"run={tmp_path / 'other'}"]
    capsys.readouterr()
    assert main(other) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"init_from={first}: its classes are good, bad; the task's are bad, good, fair" in last
