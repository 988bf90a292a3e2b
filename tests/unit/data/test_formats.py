"""Every published layout is recognised, every bad row is named by file and line, nothing is dropped silently."""

from __future__ import annotations

import builtins
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsalt.batch import IGNORE
from xsalt.data.formats import DataFolder, find_data, language_of, read_file
from xsalt.data.rows import MAX_LINE, NO_LABEL, Columns, Example, RowLog
from xsalt.errors import UserError

NLI = Columns(
    ("premise", "hypothesis"), "label", ("entailment", "neutral", "contradiction"), {"contradictory": "contradiction"}
)
PARAPHRASE = Columns(("sentence1", "sentence2"), "label", ("0", "1"), no_text=frozenset({"NS"}))
HEADER = "premise\thypothesis\tlabel\n"
ROW = "A cat.\tAn animal.\tentailment\n"


def folder_of(
    root: Path, files: dict[str, str | bytes], columns: Columns | None = NLI, on_error: str = "stop"
) -> DataFolder:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return find_data(root, columns, RowLog(on_error))


def read(
    path: Path, content: str | bytes, columns: Columns = NLI, on_error: str = "stop"
) -> tuple[list[Example], RowLog]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    log = RowLog(on_error)
    return [example for _, example in read_file(path, columns, log)], log


def test_an_example_without_label_has_the_label_that_no_criterion_counts() -> None:
    assert NO_LABEL == IGNORE


@pytest.mark.parametrize(
    "content",
    [
        HEADER + ROW,
        "premise\thypo\tlabel\nA cat.\tAn animal.\tentailment",
        "sentence1\tsentence2\tlabel\r\nA cat.\tAn animal.\tEntailment \r\n",
        "label\tother\tsentence2\tsentence1\nentailment\tx\tAn animal.\tA cat.\n",
        "gold_label\tsentence1\tsentence2\nentailment\tA cat.\tAn animal.\n",
        b"\xef\xbb\xbf" + (HEADER + ROW).encode(),
        ROW,
        '{"premise": "A cat.", "hypothesis": "An animal.", "label": "entailment"}\n',
        '{"sentence1": "A cat.", "sentence2": "An animal.", "gold_label": "entailment", "annotator_labels": ["x"]}',
        '{"premise": "A cat.", "hypothesis": "An animal.", "label": 0}',
    ],
)
def test_every_spelling_of_header_and_file_gives_the_same_example(tmp_path: Path, content: str | bytes) -> None:
    examples, log = read(tmp_path / "data", content)
    assert examples == [Example("A cat.", "An animal.", 0, "0")]
    assert log.skipped == {}


def test_a_quote_is_a_character(tmp_path: Path) -> None:
    examples, _ = read(tmp_path / "t.tsv", HEADER + '"She said\t"" no "\tneutral\n"x\ty"\tneutral\n')
    assert [(e.first, e.second) for e in examples] == [('"She said', '"" no "'), ('"x', 'y"')]


def test_ids_of_rows_are_theirs_or_their_number(tmp_path: Path) -> None:
    examples, _ = read(tmp_path / "a.tsv", "id\tsentence1\tsentence2\tlabel\n7\ta\tb\t0\nx\tc\td\t1\n", PARAPHRASE)
    assert [e.uid for e in examples] == ["7", "x"]
    rows = HEADER + ROW + "a\tb\t-\n" + ROW
    assert [e.uid for e in read(tmp_path / "b.tsv", rows)[0]] == ["0", "2"]


def test_rows_without_a_gold_label_are_skipped_and_counted(tmp_path: Path) -> None:
    line = '{"sentence1": "a", "sentence2": "b", "gold_label": "%s"}\n'
    examples, log = read(tmp_path / "snli.jsonl", line % "-" + line % "neutral" + line % "-")
    assert len(examples) == 1
    assert log.skipped == {f"{tmp_path / 'snli.jsonl'} (no gold label)": 2}


def test_rows_that_upstream_lost_are_skipped_and_counted(tmp_path: Path) -> None:
    content = "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n2\tNS\tNS\t1\n3\tNS is here\tc\t1\n"
    examples, log = read(tmp_path / "dev_2k.tsv", content, PARAPHRASE)
    assert [e.uid for e in examples] == ["1", "3"]
    assert log.skipped == {f"{tmp_path / 'dev_2k.tsv'} (text lost upstream)": 1}


def test_a_single_sentence_is_enough(tmp_path: Path) -> None:
    columns = Columns(("text",), "label", ("joy", "anger"))
    for content in ("text\tlabel\nI laugh\tJoy\n", "I laugh\tjoy\n", '{"text": "I laugh", "label": "joy"}'):
        assert read(tmp_path / "data", content, columns)[0] == [Example("I laugh", None, 0, "0")]


BAD = {
    "too few columns": (
        HEADER + ROW + "a\tneutral\n",
        3,
        r"2 columns, 3 expected \(tab-separated: premise, hypothesis",
    ),
    "too many columns": (HEADER + "a\tb\tneutral\textra\n", 2, "4 columns, 3 expected"),
    "an empty line": (HEADER + ROW + "\n" + ROW, 3, "1 column, 3 expected"),
    "an unknown label": (
        HEADER + "a\tb\tcontradictory?\n",
        2,
        "label 'contradictory\\?' is not one of entailment, neutral, contra",
    ),
    "a class id in text": (HEADER + "a\tb\t0\n", 2, "label '0' is not one of"),
    "an empty text": (HEADER + "a\t \tneutral\n", 2, "hypothesis is empty"),
    "invalid UTF-8": (HEADER.encode() + b"a\xff\tb\tneutral\n", 2, r"not UTF-8: byte 0xff \(at byte 2"),
    "a NUL byte": (HEADER + "a\0\tb\tneutral\n", 2, r"a NUL byte \(at byte 2"),
    "a 10 MB line": (HEADER + ROW + "x" * 10_000_000 + "\n" + ROW, 3, "longer than 1,000,000 bytes"),
    "no JSON": ('{"premise": "a"\n', 1, "not JSON"),
    "no object": (
        '{"premise": "a", "hypothesis": "b", "label": "neutral"}\n[1]\n',
        2,
        "a JSON object is expected, not list",
    ),
    "a missing key": ('{"premise": "a", "label": "neutral"}\n', 1, r"lacks hypothesis \(or sentence2\)"),
    "a number as text": ('{"premise": 3, "hypothesis": "b", "label": "neutral"}\n', 1, "premise is not a text: '3'"),
    "no label": ('{"premise": "a", "hypothesis": "b", "label": null}\n', 1, "label is neither a text nor a class id"),
    "a class id out of range": ('{"premise": "a", "hypothesis": "b", "label": 3}\n', 1, "label '3' is not one of"),
    "half a character": ('{"premise": "\\ud800", "hypothesis": "b", "label": 0}\n', 1, "character that is no text"),
    "an escaped NUL": ('{"premise": "\\u0000", "hypothesis": "b", "label": 0}\n', 1, "character that is no text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_stops_with_file_line_and_reason(tmp_path: Path, case: str) -> None:
    content, line, reason = BAD[case]
    with pytest.raises(UserError, match=f":{line}: .*{reason}") as error:
        read(tmp_path / "train-en.tsv", content)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'train-en.tsv'}:{line}: ")
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize("case", BAD)
def test_skipped_bad_rows_are_counted_and_reported(tmp_path: Path, case: str) -> None:
    content, line, _ = BAD[case]
    good = json.dumps({"premise": "p", "hypothesis": "h", "label": 1}) + "\n" if content[:1] == "{" else ROW
    content = content + good.encode() if isinstance(content, bytes) else content + good
    examples, log = read(tmp_path / "t", content, on_error="skip")
    assert examples[-1].label in (0, 1)
    assert log.skipped == {f"{tmp_path / 't'} (bad rows)": 1}
    assert log.messages[0].startswith(f"{tmp_path / 't'}:{line}: ")


def test_a_line_of_any_length_is_refused_without_being_loaded(tmp_path: Path) -> None:
    path = tmp_path / "zeros.tsv"
    with path.open("wb") as file:
        file.truncate(4_000_000_000)  # sparse: no bytes on the disk
    with pytest.raises(UserError, match=f"zeros.tsv:1: the line is longer than {MAX_LINE:,} bytes"):
        read_file(path, NLI, RowLog())


def test_a_missing_last_newline_is_no_error(tmp_path: Path) -> None:
    assert len(read(tmp_path / "t", HEADER + ROW + ROW.rstrip("\n"))[0]) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the file is empty"),
        (HEADER, "no examples in it below the header"),
        ("premise\tlabel\na\tneutral\n", "the header lacks hypothesis; it has premise, label"),
        ("a\tb\tunknown\n", "neither a header with premise, hypothesis, label nor a row of 3 tab-separated columns"),
        ("just words\n", "1 column, the last one 'just words'"),
        (HEADER + "a\tb\t-\n", "all 1 rows were skipped"),
    ],
)
def test_a_file_without_examples_says_why(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read(tmp_path / "t.tsv", content)


def test_a_file_that_is_not_there_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train-en.tsv").write_text(HEADER + ROW)
    with pytest.raises(UserError, match=r"trian-en\.tsv: no such file: did you mean train-en\.tsv\?"):
        read_file(tmp_path / "trian-en.tsv", NLI, RowLog())
    with pytest.raises(UserError, match=r"no such file: the folder holds train-en\.tsv"):
        read_file(tmp_path / "zzz", NLI, RowLog())
    with pytest.raises(UserError, match="nor is there a folder"):
        read_file(tmp_path / "no" / "where.tsv", NLI, RowLog())
    with pytest.raises(UserError, match="is a directory, a file is expected"):
        read_file(tmp_path, NLI, RowLog())


def test_files_by_split_and_language_are_found(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        f"{split}-{language}.tsv": HEADER + ROW for split in ("dev", "test") for language in ("en", "quy")
    }
    folder = folder_of(
        tmp_path,
        {**files, "train-en.jsonl": '{"premise": "a", "hypothesis": "b", "label": "neutral"}', "notes.txt": "x"},
    )
    assert folder.splits() == ["train", "dev", "test"]
    assert folder.languages("dev") == ["en", "quy"]
    assert folder.languages("train") == ["en"]
    assert folder.read("train", "en")[0].label == 1


def test_the_official_xnli_folders_are_read(tmp_path: Path) -> None:
    header = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpromptID\tpairID\tgenre\tlabel1\n"
    row = "{}\t{}\t\t{} premise\thypothesis\t1\t{}\tface-to-face\tneutral\n"
    dev = (
        header
        + row.format("ar", "neutral", "ar", 1)
        + row.format("en", "contradiction", "en", 1)
        + row.format("ar", "entailment", "ar", 2)
    )
    files: dict[str, str | bytes] = {
        "XNLI-1.0/xnli.dev.tsv": dev,
        "XNLI-1.0/._xnli.dev.tsv": b"\0",
        "__MACOSX/XNLI-1.0/xnli.dev.tsv": b"\0",
        "XNLI-MT-1.0/multinli/multinli.train.fr.tsv": "premise\thypo\tlabel\nUn chat.\tUn animal.\tcontradictory\n",
    }
    folder = folder_of(tmp_path, files)
    assert folder.splits() == ["train", "dev"]
    assert folder.languages("dev") == ["ar", "en"]
    assert folder.read("dev", "ar") == [
        Example("ar premise", "hypothesis", 1, "1"),
        Example("ar premise", "hypothesis", 0, "2"),
    ]
    assert folder.read("train", "fr") == [Example("Un chat.", "Un animal.", 2, "0")]
    with pytest.raises(UserError, match="no dev data in language 'fr'; there are ar, en"):
        folder.read("dev", "fr")


def test_the_official_pawsx_folder_is_read(tmp_path: Path) -> None:
    content = "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t1\n"
    names = [
        "x-final/en/train.tsv",
        "x-final/en/dev_2k.tsv",
        "x-final/de/translated_train.tsv",
        "x-final/de/test_2k.tsv",
    ]
    folder = folder_of(tmp_path, dict.fromkeys(names, content), PARAPHRASE)
    assert folder.languages("train") == ["de", "en"]
    assert (folder.languages("dev"), folder.languages("test")) == (["en"], ["de"])
    assert folder.read("train", "de") == [Example("a", "b", 1, "1")]


def test_hugging_face_parquet_is_read_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'xsalt[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "en").mkdir()
    for shard in (0, 1):
        rows = {"premise": [f"p{shard}"], "hypothesis": ["h"], "label": [2 - shard]}
        parquet.write_table(pyarrow.table(rows), tmp_path / "en" / f"validation-0000{shard}-of-00002.parquet")
    folder = find_data(tmp_path, NLI, RowLog())
    assert [(e.first, e.label) for e in folder.read("dev", "en")] == [("p0", 2), ("p1", 1)]
    (tmp_path / "en" / "test-0.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="not a readable parquet file"):
        find_data(tmp_path, NLI, RowLog()).read("test", "en")
    plain = builtins.__import__

    def without_pyarrow(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(UserError, match=r"pip install 'xsalt\[parquet\]'"):
        folder.read("dev", "en")


def test_plain_text_is_a_passage_a_line(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, {"fr.txt": "Un chat.\n\n  Un chien. \r\n", "dev-fr.txt": "Rien", "dev-en.tsv": "x"}, columns=None
    )
    assert folder.read("train", "fr") == [
        Example("Un chat.", None, NO_LABEL, "0"),
        Example("Un chien.", None, NO_LABEL, "1"),
    ]
    assert (folder.splits(), folder.languages("dev")) == (["train", "dev"], ["fr"])


def test_what_a_folder_lacks_is_said_with_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data there \(it holds nothing\); accepted: \{train,dev,test\}-LL\.tsv"):
        find_data(tmp_path, NLI, RowLog())
    (tmp_path / "dev-en.tsv").write_text(HEADER + ROW)
    with pytest.raises(UserError, match="no such folder: did you mean"):
        find_data(tmp_path.parent / (tmp_path.name + "x"), NLI, RowLog())
    with pytest.raises(UserError, match=r"is a file, data\.root names a folder; give a training file as data\.train"):
        find_data(tmp_path / "dev-en.tsv", NLI, RowLog())
    folder = find_data(tmp_path, NLI, RowLog())
    with pytest.raises(UserError, match="no test split there; there are dev"):
        folder.read("test", "en")
    with pytest.raises(UserError, match="no dev data in language 'xx'; there are en"):
        folder.read("dev", "xx")
    (tmp_path / "dev-en.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"more than one dev set in language 'en': dev-en\.jsonl and dev-en\.tsv"):
        find_data(tmp_path, NLI, RowLog())


@pytest.mark.parametrize(
    ("name", "language"),
    [
        *(
            ("train-de.tsv", "de"),
            ("nli-sw.jsonl", "sw"),
            ("fr.txt", "fr"),
            ("multinli.train.ur.tsv", "ur"),
            ("train-quy.tsv", "quy"),
        ),
        *(
            ("lingnli_train.tsv", "en"),
            ("mnli.tsv", "en"),
            ("cad_snli.tsv", "en"),
            ("train-v2.tsv", "en"),
            ("x-dev.tsv", "en"),
        ),
    ],
)
def test_a_training_files_language_is_in_its_name(name: str, language: str) -> None:
    assert language_of(Path("folder-xx") / name, "en") == language


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0"), min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.tuples(FIELD, FIELD, st.sampled_from(NLI.labels)), min_size=1, max_size=8))
def test_whatever_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    wanted = [Example(a.strip(), b.strip(), NLI.labels.index(c), str(i)) for i, (a, b, c) in enumerate(rows)]
    assert read(folder / "t.tsv", HEADER + "".join("\t".join(row) + "\n" for row in rows))[0] == wanted
    lines = (json.dumps(dict(zip(NLI.names, row, strict=True))) for row in rows)
    assert read(folder / "t.jsonl", "\n".join(lines))[0] == wanted


@settings(max_examples=150, deadline=None)
@given(content=st.binary(min_size=1, max_size=200))
def test_any_bytes_are_examples_or_a_users_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "t"
    for prefix in (b"", HEADER.encode(), b"{", ROW.encode()):
        with contextlib.suppress(UserError):  # and no other error
            assert read(path, prefix + content)[0]
