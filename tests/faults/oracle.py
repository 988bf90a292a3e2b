"""Independent readings of data files: what a reader accepts must be what these find in the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xsalt.data.rows import Columns, Example, RowLog
from xsalt.tasks.pawsx import PAWSX
from xsalt.tasks.xnli import XNLI

NLI, PARAPHRASE = XNLI().row_columns, PAWSX(data_root="nowhere").row_columns


def lines_of(raw: bytes) -> list[bytes]:
    """What an editor that knows LF and CRLF shows, the byte-order mark removed."""
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [line.removesuffix(b"\r") for line in (lines[:-1] if lines[-1] == b"" else lines)]


OTHER = {"premise": "sentence1", "sentence1": "premise", "label": "gold_label"}


def column(names: Sequence[str], wanted: str) -> str | None:
    second = ("sentence2", "hypothesis", "hypo") if wanted in ("hypothesis", "sentence2") else ()
    known = [wanted, *(n for n in second if n != wanted), *([OTHER[wanted]] if wanted in OTHER else [])]
    return next((name for name in known if name in names), None)


def check_rows(columns: Columns, name: str) -> Callable[[Path, Any], None]:
    """Every example is literally a row of the file, in order, and every other row is counted."""

    def check(folder: Path, result: tuple[list[tuple[str | None, Example]], RowLog]) -> None:
        examples, log = result
        raw = (folder / name).read_bytes()
        lines = lines_of(raw)
        if raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
            given = list(objects(lines))
            data_rows = len(lines)
        else:
            given, data_rows = list(table(lines, columns))
            assert isinstance(data_rows, int)
        check_examples(examples, given, columns)
        skipped = sum(log.skipped.values())
        assert len(examples) + skipped == data_rows, "rows went missing"

    return check


def objects(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            content = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


def table(lines: list[bytes], columns: Columns) -> tuple[list[dict[str, Any]], int]:
    """Rows by column name, and how many lines there are below the header."""
    names: list[str] | None = None
    given = []
    for number, line in enumerate(lines):
        try:
            fields = [field.strip() for field in line.decode("utf-8").split("\t")]
        except UnicodeDecodeError:
            continue
        if names is None:
            headed = all(column(fields, wanted) for wanted in columns.names)
            names = fields if headed else list(columns.names)
            start = number + 1 if headed else 0
            if headed:
                continue
        if len(fields) == len(names):
            given.append(dict(zip(names, fields, strict=True)))
    return given, len(lines) - start


def check_examples(
    examples: Sequence[tuple[str | None, Example]], given: Sequence[dict[str, Any]], columns: Columns
) -> None:
    remaining = iter(enumerate(given))
    for language, example in examples:
        for _, row in remaining:
            found = [row.get(column(list(row), wanted) or "") for wanted in columns.names]
            texts = tuple(str(text).strip() for text in found[:-1])
            if texts == (example.first, example.second) and label_of(found[-1], columns) == example.label:
                break
        else:
            raise AssertionError(f"no such row: {example}")
        assert language == row.get("language"), "another language"
        uid = next((row[n] for n in ("id", "uid", "pairID") if row.get(n) not in (None, "")), None)
        assert uid is None or example.uid == str(uid), "another id"


def label_of(value: Any, columns: Columns) -> int | None:
    labels = [label.lower() for label in columns.labels]
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    spelt = str(value).strip().lower()
    spelt = columns.spellings.get(spelt, spelt)
    if spelt in labels:
        return labels.index(spelt)
    return value if isinstance(value, int) and 0 <= value < len(labels) else None


def check_parquet(folder: Path, result: tuple[list[tuple[str | None, Example]], RowLog]) -> None:
    import pyarrow.parquet

    given = pyarrow.parquet.read_table(folder / "t.parquet", use_threads=False).to_pylist()
    check_examples(result[0], given, NLI)
    assert len(result[0]) == len(given)


def check_lines(folder: Path, result: Sequence[str]) -> None:
    stripped = [line.decode("utf-8").strip() for line in lines_of((folder / "t.txt").read_bytes())]
    assert list(result) == [line for line in stripped if line]


def check_lexicon(folder: Path, result: dict[str, frozenset[str]]) -> None:
    pairs = set()
    for line in lines_of((folder / "en-fr.txt").read_bytes()):
        text = line.decode("utf-8").lower().strip()
        if text:
            a, _, b = text.partition("\t") if "\t" in text else (text.split()[0], "", text.split()[-1])
            pairs.add((a.strip(), b.strip()))
    assert {(word, translation) for word, found in result.items() for translation in found} == pairs
