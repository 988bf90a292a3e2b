"""xsalt-augment through its own main function, at tiny size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny import LISTS, TINY, WORDS, write_nli
from xsalt_cli import augment, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nli(tmp_path_factory.mktemp("data"), train=32, dev=9)


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lexicons")
    for language in ("fr", "ru"):
        pairs = zip(WORDS["en"], WORDS[language], strict=True)
        (folder / f"en-{language}.txt").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    return folder


def test_a_table_is_the_same_bytes_wherever_it_is_made_and_its_stats_have_p_at_1(
    data: Path, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for name in ("a", "b"):
        folders.append(tmp_path / name)
        patch = pytest.MonkeyPatch()
        patch.setenv("XSALT_CACHE", str(tmp_path / f"cache-{name}"))
        keys = [f"data.root={data}", "distill.layer=0", f"lexicon={lexicon}", "sample=2", f"out={folders[-1]}"]
        keys += [*TINY, *LISTS]
        assert augment.main(["--task", "xnli", *keys, f"batch.size={4 if name == 'a' else 64}"]) == 0
        patch.undo()
    names = {path.name for path in folders[0].iterdir()}
    assert {"manifest.json", "stats.json"} <= names
    for name in names - {"stats.json"}:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    stats = json.loads((folders[0] / "stats.json").read_text())
    assert set(stats["languages"]) == {"fr", "ru"}
    for row in stats["languages"].values():
        assert {"vocabulary", "coverage", "mean_probability", "p_at_1", "p_at_1_n"} <= set(row)
        assert 0 <= row["p_at_1"] <= 1
        assert sum(tenth["n"] for tenth in row["precision_by_decile"]) <= row["p_at_1_n"]
    deciles = [stats["languages"][language]["precision_by_decile"] for language in ("fr", "ru")]
    assert sum(t["n"] for row in deciles for t in row) == sum(t["n"] for t in stats["precision_by_decile"]) > 0
    assert stats["threshold"] == 0.3
    assert stats["tokens"] > 0 and stats["fingerprint"]
    shown = capsys.readouterr().out
    assert "P@1" in shown and "precision" in shown and "probability 0.3 or more" in shown


def test_a_threshold_decides_what_is_covered_and_shown(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [
        "--task",
        "xnli",
        f"data.root={data}",
        "distill.temperature=5",
        "distill.synonyms=true",
        "distill.k=2",
        *TINY,
    ]
    rates = []
    for threshold in (0.0, 1.0):
        out = tmp_path / str(threshold)
        assert augment.main([*keys, f"threshold={threshold}", f"out={out}", "sample=1"]) == 0
        stats = json.loads((out / "stats.json").read_text())
        rates.append([row["coverage"] for row in stats["languages"].values()])
        assert stats["threshold"] == threshold and {"fr", "en"} <= set(stats["languages"])
        assert json.loads((out / "manifest.json").read_text())["source"] == ["en"]
    assert max(rates[0]) > 0 and max(rates[1]) == 0
    shown = capsys.readouterr()
    assert "en (synonyms)  " in shown.out
    assert "warning: no substitution has a probability of 1.0 or more, so nothing is switched: the highest" in shown.err


@pytest.mark.parametrize("value", ["-0.1", "1.5", "high"])
@pytest.mark.parametrize("key", ["threshold", "augmenter.codeswitch.threshold"])
def test_a_threshold_that_is_no_probability_is_one_line(
    key: str, value: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--task", "xnli", "--augmenter", "codeswitch", f"data.root={data}", f"{key}={value}", *TINY]
    assert augment.main(arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"xsalt-augment: error: {key}") and "Traceback" not in last


@pytest.mark.parametrize("name", ["ids.npy", "probability.npy", "manifest.json", "stats.json"])
@pytest.mark.parametrize("fault", ["cut", "flipped"])
def test_a_damaged_table_in_the_cache_is_made_anew_and_said(
    name: str,
    fault: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path))
    arguments = ["--task", "xnli", f"data.root={data}", *TINY]
    assert augment.main(arguments) == 0
    (path,) = tmp_path.glob(f"substitutions/*/{name}")
    raw = path.read_bytes()
    middle = len(raw) // 2
    path.write_bytes(raw[:middle] if fault == "cut" else raw[:middle] + bytes([raw[middle] ^ 2]) + raw[middle + 1 :])
    capsys.readouterr()
    assert augment.main(arguments) == 0
    err = capsys.readouterr().err
    assert f"substitutions are scored anew, the table in the cache is damaged: {path}: " in err
    assert name == "stats.json" or path.read_bytes() == raw  # statistics hold a speed
    assert not list(path.parents[1].glob(".*"))


def test_a_corpus_without_words_is_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "digits.txt").write_text("1 2 3\n4 5, 6.\n")
    arguments = ["--task", "xnli", f"data.root={data}", f"corpus={tmp_path / 'digits.txt'}", *TINY]
    assert augment.main(arguments) == 0
    assert "nothing is switched: the corpus has no words" in capsys.readouterr().err


def test_a_dev_set_with_parallel_rows_gets_chrf_and_one_without_does_not(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_nli(tmp_path / "other", train=32, dev=9)
    rows = (other / "dev-ru.tsv").read_text(encoding="utf-8").splitlines()
    (other / "dev-ru.tsv").write_text("\n".join(rows[:-1]) + "\n", encoding="utf-8")
    for folder, parallel in ((data, {"fr", "ru"}), (other, {"fr"})):
        out = tmp_path / f"table-{folder.name}"
        keys = [f"data.root={folder}", "corpus=dev", "distill.layer=0", f"out={out}", *TINY]
        assert augment.main(["--task", "xnli", *keys]) == 0
        languages = json.loads((out / "stats.json").read_text())["languages"]
        for language, row in languages.items():
            assert (set(row) >= {"chrf_switched", "chrf_source"}) is (language in parallel)
            assert ("chrf_source" in row) is (language in parallel)
        assert "chrF" in capsys.readouterr().out


def test_a_corpus_that_does_not_exist_is_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert augment.main(["--task", "xnli", f"data.root={data}", "corpus=/nowhere.txt", *TINY]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("xsalt-augment: error: corpus=/nowhere.txt")


def test_anchors_come_from_plain_text_and_are_refused_without_it(
    data: Path, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    keys = ["--task", "xnli", f"data.root={data}", "distill.method=anchors", f"lexicon={lexicon}", *TINY, *LISTS]
    assert augment.main(keys) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("vocabulary.text=DIR with a file LL.txt a language")
    for language in ("en", "fr", "ru"):
        (tmp_path / f"{language}.txt").write_text("cat sees dog\nsmall tree runs\ngreen river sleeps\n" * 4)
    assert augment.main([*keys, f"vocabulary.text={tmp_path}", f"out={tmp_path / 'table'}"]) == 0
    stats = json.loads((tmp_path / "table" / "stats.json").read_text())
    assert all(row["mean_probability"] > 0 for row in stats["languages"].values())


def test_a_report_is_written_to_the_copy_alone_and_never_shown_by_a_later_command(
    data: Path, lexicon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    keys = ["--task", "xnli", f"data.root={data}", "distill.layer=0", *TINY, *LISTS]
    assert augment.main(keys) == 0
    first = capsys.readouterr().out
    (made,) = (tmp_path / "cache" / "substitutions").glob("*/stats.json")
    before = made.read_bytes()
    out = tmp_path / "out"
    for threshold in ("0.9", "0.5"):  # the second is written over the first, whose table is the same
        assert augment.main([*keys, f"lexicon={lexicon}", f"threshold={threshold}", f"out={out}"]) == 0
        assert "P@1" in capsys.readouterr().out
        assert json.loads((out / "stats.json").read_text())["threshold"] == float(threshold)
    assert made.read_bytes() == before
    assert augment.main(keys) == 0
    assert capsys.readouterr().out == first


def test_training_warns_of_nothing_to_switch_by_its_own_threshold(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["--task", "xnli", "--augmenter", "codeswitch", f"data.root={data}", "distill.temperature=5"]
    keys += ["dry_run=true", *TINY, *LISTS]
    for threshold, warned in (("0", False), ("1", True)):
        run = tmp_path / threshold
        assert train.main([*keys, f"augmenter.codeswitch.threshold={threshold}", f"run={run}"]) == 0
        said = capsys.readouterr().err
        assert ("switches nothing: no substitution" in said and "the highest is 0." in said) == warned
        assert "so nothing is switched" not in said


def test_a_copy_that_cannot_be_written_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "x", Path("/proc/x")):
        assert augment.main(["--task", "xnli", f"data.root={data}", f"out={out}", *TINY]) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith(f"xsalt-augment: error: {out}: the substitution table can't be written (")


def test_a_bad_lexicon_is_told_before_anything_is_scored(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "en-fr.txt").write_text("alone\n")
    assert augment.main(["--task", "xnli", f"data.root={data}", f"lexicon={tmp_path / 'en-fr.txt'}", *TINY]) == 2
    said = capsys.readouterr().err
    assert "en-fr.txt:1: 'alone' holds no two words" in said.strip().splitlines()[-1]
    assert "substitutions: scored" not in said


def test_words_of_a_lexicon_that_never_occur_have_no_precision(data: Path, tmp_path: Path) -> None:
    (tmp_path / "en-fr.txt").write_text("zebrafish\tpoisson\n")
    out = tmp_path / "table"
    words = ["--task", "xnli", f"data.root={data}", f"lexicon={tmp_path / 'en-fr.txt'}", f"out={out}", *TINY, *LISTS]
    assert augment.main(words) == 0
    row = json.loads((out / "stats.json").read_text())["languages"]["fr"]
    assert (row["p_at_1"], row["p_at_1_n"]) == (None, 0)


def test_a_table_of_something_else_in_the_cache_is_made_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path))
    arguments = ["--task", "xnli", f"data.root={data}", *TINY, *LISTS]
    for k in (1, 2):
        assert augment.main([*arguments, f"distill.k={k}"]) == 0
    one, two = sorted(tmp_path.glob("substitutions/*"), key=lambda path: path.stat().st_mtime)
    before = (one / "ids.npy").read_bytes()
    shutil.rmtree(one)
    shutil.copytree(two, one)
    assert augment.main([*arguments, "distill.k=1"]) == 0
    assert "the table in the cache is damaged: " in capsys.readouterr().err
    assert (one / "ids.npy").read_bytes() == before
