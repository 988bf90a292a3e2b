"""xsalt-vocab through its own main function, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import TINY, WORDS, write_nli
from xsalt_cli import augment
from xsalt_cli.vocab import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nli(tmp_path_factory.mktemp("data"), train=32, dev=9)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in the three languages, each word nine times."""
    folder = tmp_path_factory.mktemp("text")
    for language, words in WORDS.items():
        (folder / f"{language}.txt").write_text("\n".join([" ".join(words)] * 9) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that cuts none of the words."""
    import tokenizers

    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *(f"▁{w}" for words in WORDS.values() for w in words),
        "▁12",
        ".",
        "<mask>",
    ]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([(p, -1.0) for p in pieces], unk_id=3))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(backend.to_str(), encoding="utf-8")
    return path


@pytest.fixture
def keys(data: Path, text: Path, tokenizer: Path) -> list[str]:
    return [
        f"data.root={data}",
        f"tokenizer={tokenizer}",
        f"vocabulary.text={text}",
        "vocabulary.backend=corpus",
        *TINY,
    ]


def test_vocabularies_are_shown_written_and_taken_from_the_folder(
    keys: list[str], data: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vocabularies"
    assert main([*keys, f"out={out}"]) == 0
    shown = capsys.readouterr().out
    for language, words in WORDS.items():
        row = next(line for line in shown.splitlines() if line.startswith(f"{language} "))
        assert row.split()[1:3] == ["10", "corpus"]
        assert set(row.split()[3:]) == {f"▁{w}" for w in words}
    folder = [f"data.root={data}", f"tokenizer={tokenizer}", f"vocabulary.folder={out}", *TINY]
    assert main(folder) == 0
    assert capsys.readouterr().out == shown


def test_backends_are_combined_from_the_command_line(
    keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fr.txt").write_text("cat\n▁кошка\n", encoding="utf-8")
    more = [f"vocabulary.files={tmp_path}", "vocabulary.backend=corpus,script,file", "json=true"]
    assert main([*keys, *more]) == 0
    french = json.loads(capsys.readouterr().out)["languages"]["fr"]
    assert (french["backend"], french["ids"]) == ("corpus+script+file", 12)
    assert french["shared"] == {"en": 1, "ru": 1}


def test_shared_pieces_are_shown_with_their_share_of_both_languages(
    keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fr.txt").write_text("cat\ndog\n", encoding="utf-8")
    assert main([*keys, f"vocabulary.files={tmp_path}", "vocabulary.backend=corpus,file"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("en and fr")]
    assert row.split()[3:] == ["2", "20.0", "%", "16.7", "%"]


def test_coverage_is_the_share_of_running_words_of_the_dev_set(
    keys: list[str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = {"en": "cat dog house\tcat 12 .", "fr": "chat cat chien\tchat", "ru": "12\t."}
    for language, row in rows.items():
        for split in ("train", "dev"):
            content = f"premise\thypothesis\tlabel\n{row}\tneutral\n"
            (data / f"{split}-{language}.tsv").write_text(content, encoding="utf-8")
    few = tmp_path / "few"
    few.mkdir()
    (few / "fr.txt").write_text("chat\ncat\n", encoding="utf-8")
    (few / "en.txt").write_text("cat\n", encoding="utf-8")
    (few / "ru.txt").write_text("дом\n", encoding="utf-8")
    wanted = [f"data.root={data}", f"vocabulary.files={few}", "vocabulary.backend=file", "coverage=true"]
    assert main([*keys, *wanted, "json=true"]) == 0
    found = json.loads(capsys.readouterr().out)["languages"]
    assert found["en"]["coverage"] == found["en"]["source_coverage"] == found["fr"]["source_coverage"] == 0.5
    assert found["fr"]["coverage"] == 0.75
    assert (found["ru"]["coverage"], found["ru"]["source_coverage"]) == (None, 0.0)
    assert main([*keys, *wanted]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fr ")]
    assert row.split()[3:7] == ["75.0", "%", "50.0", "%"]


def test_coverage_is_never_measured_on_a_test_set(keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*keys, "coverage=true", "eval.split=test"]) == 2
    assert "test sets are read by evaluation alone" in capsys.readouterr().err.strip().splitlines()[-1]


def test_coverage_without_the_split_is_one_line(keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*keys, "coverage=true", "eval.split=other", "languages=[]"]) == 2
    assert "eval.split=other: " in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_thin_vocabulary_is_a_warning_that_names_what_to_do(
    keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(keys) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert "warning: the vocabulary of fr is thin (10 ids): give more text, or a lower vocabulary.min_count" in warnings


def test_a_language_with_an_empty_vocabulary_is_shown_and_named(
    keys: list[str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for language in ("en", "ru"):
        (tmp_path / f"{language}.txt").write_bytes((text / f"{language}.txt").read_bytes())
    (tmp_path / "fr.txt").write_text("12 . 12\n" + "chat maison arbre\n" * 4, encoding="utf-8")  # all too rare
    assert main([*keys, f"vocabulary.text={tmp_path}"]) == 0
    out, err = capsys.readouterr()
    assert "warning: the vocabulary of fr is empty (corpus)" in err
    assert any(line.split()[:3] == ["fr", "0", "corpus"] for line in out.splitlines())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["vocabulary.backend=corpus,auto"], "auto alone"),
        (["vocabulary.backend=wordlist"], "known: auto, corpus"),
        (["vocabulary.backend=file"], "vocabulary.files=DIR"),
        (["vocabulary.folder=/nowhere"], "/nowhere/vocabulary.json: no language vocabularies there"),
    ],
)
def test_bad_settings_are_one_line(
    keys: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*keys, *more]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("xsalt-vocab: error: ") and message in last


def test_a_malformed_list_is_one_line_with_its_place(
    keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fr.txt").write_text("chat\nle chat\n", encoding="utf-8")
    assert main([*keys, f"vocabulary.files={tmp_path}", "vocabulary.backend=corpus,file"]) == 2
    assert f"{tmp_path}/fr.txt:2: 'le chat' is more than one word" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_damaged_folder_and_one_of_another_tokenizer_are_one_line(
    keys: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*keys, f"out={tmp_path}"]) == 0
    folder = [f"data.root={data}", f"vocabulary.folder={tmp_path}", *TINY]
    assert main(folder) == 2
    assert "made for another tokenizer" in capsys.readouterr().err.strip().splitlines()[-1]
    path = tmp_path / "vocabulary.json"
    path.write_bytes(path.read_bytes()[:-20])
    assert main(folder) == 2
    assert "vocabulary.json: damaged" in capsys.readouterr().err.strip().splitlines()[-1]


def test_nothing_is_switched_to_a_language_with_an_empty_vocabulary(
    keys: list[str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "text"
    few.mkdir()
    for language in WORDS:
        content = (text / f"{language}.txt").read_text(encoding="utf-8")
        (few / f"{language}.txt").write_text("chat\n" if language == "fr" else content, encoding="utf-8")  # too rare
    wanted = [*keys, "--task", "xnli", f"vocabulary.text={few}", "distill.layer=0"]
    assert augment.main([*wanted, f"out={tmp_path / 'table'}"]) == 0
    assert "warning: the vocabulary of fr is empty (corpus)" in capsys.readouterr().err
    assert set(json.loads((tmp_path / "table" / "stats.json").read_text())["languages"]) == {"ru"}
    assert augment.main([*wanted, "languages=fr"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("xsalt-augment: error: no target language has a vocabulary (asked for: ")


def test_a_folder_that_cannot_be_written_is_one_line(
    keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(keys) == 0
    for out in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/x")):
        assert main([*keys, f"out={out}"]) == 2
        assert f"{out}: the vocabularies can't be written (" in capsys.readouterr().err.strip().splitlines()[-1]
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "file"))
    assert main(keys) == 2
    assert "can't be written (" in capsys.readouterr().err.strip().splitlines()[-1]
    assert (tmp_path / "file").read_text() == "mine"


def test_languages_need_no_data_of_the_task_unless_coverage_is_asked_for(
    keys: list[str], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (text / "xx.txt").write_text("chat chien\n" * 9, encoding="utf-8")
    assert main([*keys, "languages=xx"]) == 0
    assert "\nxx " in capsys.readouterr().out
    assert main([*keys, "languages=xx", "coverage=true"]) == 2
    assert "has no 'xx'" in capsys.readouterr().err


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    keys: list[str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "en.txt").write_text("cat\n" + "dog " * 300_000)
    (tmp_path / "fr.txt").write_text("chat\n" * 9)
    assert main([*keys, f"vocabulary.text={tmp_path}", "languages=fr"]) == 2
    assert "en.txt:2: the line is longer than 1,000,000 bytes" in capsys.readouterr().err.strip().splitlines()[-1]


def test_rows_left_out_are_told(keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_nli(tmp_path / "data", train=32, dev=9)
    with (data / "dev-en.tsv").open("a", encoding="utf-8") as file:
        file.write("one field\n")
    more = [f"data.root={data}", "data.on_error=skip"]
    assert main([*keys, *more, "coverage=true"]) == 0
    assert "skipped 1 rows" in capsys.readouterr().err
    assert augment.main([*keys, *more, "--task", "xnli", "corpus=dev", "distill.layer=0"]) == 0
    assert "skipped 1 rows" in capsys.readouterr().err
