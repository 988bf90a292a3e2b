"""Rows of one file, read strictly: every row is an example, or is counted with its reason. Imports no torch.

Tab-separated text has no quoting: a quote is a character. JSON lines and parquet carry the same columns by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xsalt.data.parquet import read_mappings
from xsalt.errors import UserError
from xsalt.files import MAX_LINE, is_text, open_file, parse_json, some

NO_LABEL = -100
"""The label of an example that has none: equals ``xsalt.batch.IGNORE``, which can't be imported without torch."""
_KEPT_MESSAGES = 20
_OTHER_NAMES = {
    "premise": ("sentence1",),
    "hypothesis": ("sentence2", "hypo"),
    "sentence1": ("premise",),
    "sentence2": ("hypothesis", "hypo"),
    "label": ("gold_label",),
}
"""Names under which published data sets carry a column."""
_ID_NAMES = ("id", "uid", "pairID")
LANGUAGE = r"[a-z]{2,3}(?:[-_][A-Za-z]{2,4})?"
"""What a language code looks like. Codes become parts of file names."""
_NO_NAME = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
"""Characters that no id has: it is written into tables as it is."""


@dataclass(frozen=True)
class Example:
    """One row: one or two texts, the class (``NO_LABEL`` if none), and the row's id (else its number from 0)."""

    first: str
    second: str | None
    label: int
    uid: str


@dataclass(frozen=True)
class Columns:
    """Which columns a task reads, and how its labels are spelt.

    Attributes:
        texts: names of one or two text columns. label: name of the label column.
        labels: the classes in their order; compared without case and surrounding space.
        spellings: other spellings -> label.
        no_label: labels of rows that have none ("-" in SNLI and MultiNLI): skipped and counted.
        no_text: texts of rows that upstream lost ("NS" in PAWS-X): skipped and counted.
    """

    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    spellings: Mapping[str, str] = field(default_factory=dict)
    no_label: frozenset[str] = frozenset({"-"})
    no_text: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.texts, self.label)

    def classes(self) -> dict[str, int]:
        """Spelling in lower case -> class; -1 for rows without a label."""
        known = {label.strip().lower(): i for i, label in enumerate(self.labels)}
        others = {o.lower(): known[label.lower()] for o, label in self.spellings.items() if label.lower() in known}
        return {**dict.fromkeys(self.no_label, -1), **others, **known}


@dataclass
class RowLog:
    """What becomes of rows that are no examples.

    Attributes:
        on_error: ``stop`` raises at the first bad row, ``skip`` counts it.
        skipped: file and reason -> number of rows, for instance ``{"train.jsonl (no gold label)": 785}``.
        messages: the first bad rows as ``file:line: reason``.
    """

    on_error: str = "stop"
    skipped: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def bad(self, path: Path, line: int, reason: str) -> None:
        """Raises ``UserError`` or counts."""
        message = f"{path}:{line}: {reason}"
        if self.on_error == "stop":
            raise UserError(message)
        if len(self.messages) < _KEPT_MESSAGES:
            self.messages.append(message)
        self.skip(path, "bad rows")

    def skip(self, path: Path, why: str) -> None:
        key = f"{path} ({why})"
        self.skipped[key] = self.skipped.get(key, 0) + 1


@dataclass(frozen=True)
class Row:
    """A row before its label is understood. ``number`` counts data rows from 0, ``line`` all lines from 1."""

    line: int
    number: int
    texts: tuple[str, ...]
    label: str | int
    uid: str | None
    language: str | None


def read_lines(path: Path, log: RowLog) -> Iterator[tuple[int, str]]:
    """Numbered lines from 1 without their ends. A byte-order mark, CRLF and a missing last newline are tolerated."""
    number = 0
    with open_file(path) as file:
        while raw := file.readline(MAX_LINE + 2):
            number += 1
            if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
                log.bad(path, number, f"the line is longer than {MAX_LINE:,} bytes")
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_LINE)
                continue
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if b"\0" in raw:
                log.bad(path, number, f"a NUL byte (at byte {raw.index(0) + 1} of the line): is this a text file?")
                continue
            try:
                yield number, raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except UnicodeDecodeError as error:
                log.bad(
                    path, number, f"not UTF-8: byte 0x{raw[error.start]:02x} (at byte {error.start + 1} of the line)"
                )


def _find(name: str, there: Sequence[str]) -> int | None:
    """Where a column is, under its name or another that it goes by."""
    return next((there.index(n) for n in (name, *_OTHER_NAMES.get(name, ())) if n in there), None)


def read_tsv(path: Path, columns: Columns, log: RowLog) -> Iterator[Row]:
    """Rows of tab-separated text: with a header that names the columns, or headerless with just these, label last."""
    lines = read_lines(path, log)
    first = next(lines, None)
    if first is None:
        return
    if first[0] > 1:  # without a header that says otherwise, columns would be taken in the usual order
        raise UserError(f"{path}:1: the first line can't be read, and it may name the columns: repair it")
    header = [name.strip() for name in first[1].split("\t")]
    at = [_find(name, header) for name in columns.names]
    if None not in at:
        uid_at = next((header.index(n) for n in _ID_NAMES if n in header), None)
        used = {header[i] for i in (*at, uid_at) if i is not None} | {"language"}
        if twice := [name for name in header if name in used and header.count(name) > 1]:
            raise UserError(f"{path}:{first[0]}: the header names the column {twice[0]} twice: keep one")
        language_at = header.index("language") if "language" in header else None
        rest, offset, wanted = lines, first[0] + 1, header
    else:
        _check_headerless(path, first[0], header, at, columns)
        at, uid_at, language_at = list(range(len(columns.names))), None, None
        rest, offset, wanted = _again(first, lines), 1, list(columns.names)
    text_at, label_at = [i for i in at[:-1] if i is not None], at[-1] or 0
    for number, line in rest:
        fields = line.split("\t")
        if len(fields) != len(wanted):
            log.bad(
                path,
                number,
                f"{_count(len(fields), 'column')}, {len(wanted)} expected (tab-separated: {some(wanted, 20)})",
            )
            continue
        uid = fields[uid_at].strip() if uid_at is not None else None
        language = fields[language_at].strip() if language_at is not None else None
        yield Row(number, number - offset, tuple([fields[i].strip() for i in text_at]), fields[label_at], uid, language)


def _again(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest


def _check_headerless(path: Path, line: int, fields: list[str], at: Sequence[int | None], columns: Columns) -> None:
    """Raises ``UserError`` unless the first line is a row rather than a header."""
    width = len(columns.names)
    if len(fields) == width and fields[-1].strip().lower() in columns.classes():
        return
    missing = [name for name, i in zip(columns.names, at, strict=True) if i is None]
    if len(missing) < width:
        raise UserError(
            f"{path}:{line}: the header lacks {' and '.join(missing)}; it has {some([n[:40] for n in fields], 20)}"
        )
    raise UserError(
        f"{path}:{line}: neither a header with {', '.join(columns.names)} nor a row of {width} tab-separated columns "
        f"with a label last ({', '.join(columns.labels)}): "
        f"{_count(len(fields), 'column')}, the last one {fields[-1][:40]!r}"
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def read_jsonl(path: Path, columns: Columns, log: RowLog) -> Iterator[Row]:
    """Rows of JSON lines: an object a line, columns by name."""
    for number, line in read_lines(path, log):
        try:
            content = parse_json(line)
        except ValueError as error:
            log.bad(path, number, f"not JSON: {str(error)[:200]}")
            continue
        row = _from_mapping(content, number, columns)
        if isinstance(row, str):
            log.bad(path, number, row)
        else:
            yield row


def read_parquet(path: Path, columns: Columns, log: RowLog) -> Iterator[Row]:
    """Rows of a parquet file, columns by name; an integer label is a class id."""
    others = [other for name in columns.names for other in _OTHER_NAMES.get(name, ())]
    wanted = list(dict.fromkeys((*columns.names, *others, *_ID_NAMES, "language")))
    for number, content in enumerate(read_mappings(path, wanted), 1):
        row = _from_mapping(content, number, columns)
        if isinstance(row, str):
            log.bad(path, number, row)
        else:
            yield row


def _from_mapping(content: Any, line: int, columns: Columns) -> Row | str:
    """A row from named values, or what is wrong with them."""
    if not isinstance(content, dict):
        return f"a JSON object is expected, not {type(content).__name__}"
    there = list(content)
    values: list[Any] = []
    for name in columns.names:
        at = _find(name, there)
        if at is None:
            others = "".join(f" (or {other})" for other in _OTHER_NAMES.get(name, ()))
            return f"lacks {name}{others}; it has {some([n[:40] for n in there], 20)}"
        values.append(content[there[at]])
    for name, value in zip(columns.texts, values, strict=False):
        if not isinstance(value, str):
            return f"{name} is not a text: {str(value)[:40]!r}"
        if not is_text(value):
            return f"{name} has a character that is no text (NUL or half of a surrogate pair)"
    label = values[-1]
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        return f"{columns.label} is neither a text nor a class id: {str(label)[:40]!r}"
    uid = next((content[n] for n in _ID_NAMES if content.get(n) is not None), None)
    if isinstance(uid, bool) or not isinstance(uid, (str, int, type(None))):
        return f"the row's id is neither a text nor a whole number: {str(uid)[:40]!r}"
    language = content.get("language")
    if not isinstance(language, (str, type(None))):
        return f"language is not a text: {str(language)[:40]!r}"
    texts = tuple(value.strip() for value in values[:-1])
    return Row(line, line - 1, texts, label, None if uid is None else str(uid), language)


def examples(path: Path, rows: Iterator[Row], columns: Columns, log: RowLog) -> Iterator[tuple[str | None, Example]]:
    """Examples with the language that their row names, if any. Checks texts and labels."""
    classes = columns.classes()
    spelt: dict[str, int | None] = {}  # the file's own spellings, so that each is looked at once
    for row in rows:
        if any(not text for text in row.texts):
            name = next(n for n, text in zip(columns.texts, row.texts, strict=True) if not text)
            log.bad(path, row.line, f"{name} is empty")
            continue
        wrong = _wrong_name(row)
        if wrong:
            log.bad(path, row.line, wrong)
            continue
        if columns.no_text and not columns.no_text.isdisjoint(row.texts):
            log.skip(path, "text lost upstream")
            continue
        if isinstance(row.label, int):
            label = _class_of_id(row.label, columns, classes)
        else:
            if row.label not in spelt:
                spelt[row.label] = classes.get(row.label.strip().lower())
            label = spelt[row.label]
        if label is None:
            log.bad(path, row.line, f"label {str(row.label)[:40]!r} is not one of {', '.join(columns.labels)}")
        elif label < 0:
            log.skip(path, "no gold label")
        else:
            second = row.texts[1] if len(row.texts) > 1 else None
            yield row.language, Example(row.texts[0], second, label, row.uid or str(row.number))


def _wrong_name(row: Row) -> str | None:
    """What is wrong with the row's language or id, if anything: both become parts of what is written."""
    if row.language is not None and not re.fullmatch(LANGUAGE, row.language):
        return f"language {row.language[:40]!r} is no language code such as fr, quy or zh-Hans"
    if row.uid is not None and (found := _NO_NAME.search(row.uid)):
        return f"the row's id has a character that no name has: {found[0]!r}"
    return None


def _class_of_id(id_: int, columns: Columns, classes: Mapping[str, int]) -> int | None:
    """The class that an integer means: a label spelt so, else the label of that position; -1 is no label."""
    if str(id_) in classes:
        return classes[str(id_)]
    return id_ if -1 <= id_ < len(columns.labels) else None


def read_rows(path: Path, columns: Columns, log: RowLog) -> list[tuple[str | None, Example]]:
    """All examples of one file, its kind recognised by content, each with the language that its row names, if any.

    Raises:
        UserError: ``file:line: reason`` at a bad row, unless the log skips them; or if no row is left.
    """
    with open_file(path) as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    reader = read_parquet if start.startswith(b"PAR1") else read_jsonl if start.startswith(b"{") else read_tsv
    found = list(examples(path, reader(path, columns, log), columns, log))
    if not found:
        lost = sum(count for key, count in log.skipped.items() if key.startswith(f"{path} ("))
        raise UserError(
            f"{path}: no examples in it" + (f": all {lost} rows were skipped" if lost else " below the header")
        )
    return found


def read_text(path: Path, log: RowLog) -> list[Example]:
    """Passages of plain text, one a line, numbered from 0; blank lines only separate."""
    found: list[Example] = []
    for _, line in read_lines(path, log):
        if line.strip():
            found.append(Example(line.strip(), None, NO_LABEL, str(len(found))))
    if not found:
        raise UserError(f"{path}: no text in it")
    return found
