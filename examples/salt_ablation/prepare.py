"""Cuts the real data into what the study reads, so that searching and confirming can't see the same rows.

XNLI dev rows 1 to 1,245 of each language become ``dev``, rows 1,246 to 2,490 ``test`` (a premise has three rows in a
row, so none is in both); English training pairs come from LingNLI and MultiNLI, a sample of 20,000 and all of them.
PAWS-X dev is split by id, the same ids in all languages: below 1,400 English ``train``, to 1,599 English ``dev``, the
rest ``test``. The output is a function of the data, ``--pairs`` and ``--seed``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xsalt.data.formats import read_file
from xsalt.data.rows import Columns, Example, RowLog
from xsalt.errors import UserError
from xsalt_cli.guard import guard

ROWS, SEARCH_ROWS = 2490, 1245
"""Rows of XNLI dev, and how many of them, from the first on, are for searching."""
TRAIN_IDS, DEV_IDS = 1400, 1600
"""PAWS-X: ids below the first are for training, below the second for choosing the checkpoint, the rest for testing."""
NLI = Columns(("premise", "hypothesis"), "label", ("entailment", "neutral", "contradiction"))
PAWS = Columns(("sentence1", "sentence2"), "label", ("0", "1"), no_text=frozenset({"NS"}))
TRAIN_FILES = ("lingnli_train.tsv", "mnli.tsv", "taxinli_mnli.tsv")
LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")


def read(path: Path, columns: Columns) -> list[Example]:
    """All rows. Raises ``UserError`` with ``file:line`` at the first bad one."""
    return [example for _, example in read_file(path, columns, RowLog())]


def write(path: Path, examples: Sequence[Example], columns: Columns) -> None:
    """Writes a file with a header, whole or not at all, and prints its size and the start of its SHA-256."""
    ids = ["id"] if columns is PAWS else []
    rows = ["\t".join([*ids, *columns.names])]
    for example in examples:
        uid = [example.uid] if ids else []
        rows.append("\t".join([*uid, example.first, example.second or "", columns.labels[example.label]]))
    content = ("\n".join(rows) + "\n").encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
    print(f"{path}: {len(examples)} rows, SHA-256 {hashlib.sha256(content).hexdigest()[:12]}")


def split_xnli(data: Path) -> dict[str, dict[str, list[Example]]]:
    """Split -> language -> rows. Raises ``UserError`` unless the languages are parallel row by row."""
    english = read(data / "dev-en.tsv", NLI)
    splits: dict[str, dict[str, list[Example]]] = {"dev": {}, "test": {}}
    for language in LANGUAGES:
        path = data / f"dev-{language}.tsv"
        rows = read(path, NLI)
        if len(rows) != ROWS:
            raise UserError(f"{path}: {len(rows)} rows, XNLI dev has {ROWS}: give the folder of the whole set")
        for number, (row, source) in enumerate(zip(rows, english, strict=True)):
            if row.label != source.label:
                raise UserError(f"{path}:{number + 2}: another label than in English: the rows are not parallel")
        splits["dev"][language], splits["test"][language] = rows[:SEARCH_ROWS], rows[SEARCH_ROWS:]
    return splits


def letters(text: str) -> str:
    """What is left of a text for comparison: letters and digits in lower case; sources differ in quotes and spaces."""
    return re.sub(r"\W+", "", text.casefold())


def training_pairs(files: Iterable[Path], held_out: Iterable[Example], seed: int) -> list[Example]:
    """All different pairs whose premise is in no held-out row, in an order drawn by the seed."""
    premises = {letters(row.first) for row in held_out}
    found: dict[tuple[str, str], Example] = {}
    for path in files:
        for row in read(path, NLI):
            pair = letters(row.first), letters(row.second or "")
            if pair[0] not in premises:
                found.setdefault(pair, row)

    def place(row: Example) -> bytes:
        return hashlib.sha256(f"{seed}\t{row.first}\t{row.second}".encode()).digest()

    return sorted(found.values(), key=place)


def balanced(pairs: Sequence[Example], number: int) -> list[Example]:
    """The first pairs of each label in their order; labels differ by one pair at most.

    Raises:
        UserError: if a label has too few.
    """
    classes = len(NLI.labels)
    left = {label: number // classes + (label < number % classes) for label in range(classes)}
    chosen = []
    for pair in pairs:
        if left[pair.label]:
            left[pair.label] -= 1
            chosen.append(pair)
    for label, missing in left.items():
        if missing:
            raise UserError(f"--pairs {number}: {missing} pairs of label {NLI.labels[label]} too few: ask for less")
    return chosen


def split_pawsx(data: Path) -> dict[str, dict[str, list[Example]]]:
    """Split -> language -> rows. Raises ``UserError`` if an id is no number, or has another label than in English."""
    paths = {path.stem.removeprefix("dev-"): path for path in sorted(data.glob("dev-*.tsv"))}
    if "en" not in paths or len(paths) < 2:
        raise UserError(f"{data}: holds {len(paths)} of the files dev-LL.tsv: dev-en.tsv and others are needed")
    rows = {language: read(path, PAWS) for language, path in paths.items()}
    gold: dict[str, int] = {row.uid: row.label for row in rows["en"]}
    splits: dict[str, dict[str, list[Example]]] = {"train": {"en": []}, "dev": {"en": []}, "test": {}}
    for language, of_language in rows.items():
        for row in of_language:
            if not row.uid.isdecimal() or gold.get(row.uid, row.label) != row.label:
                raise UserError(f"{paths[language]}: id {row.uid!r} is no number or has another label in English")
        splits["test"][language] = [row for row in of_language if int(row.uid) >= DEV_IDS]
    splits["train"]["en"] = [row for row in rows["en"] if int(row.uid) < TRAIN_IDS]
    splits["dev"]["en"] = [row for row in rows["en"] if TRAIN_IDS <= int(row.uid) < DEV_IDS]
    for split, languages in splits.items():
        for language, of_language in languages.items():
            if not of_language:
                raise UserError(f"{paths[language]}: no row with an id of the {split} split: give the whole set")
    return splits


def write_all(folder: Path, splits: Mapping[str, Mapping[str, Sequence[Example]]], columns: Columns) -> None:
    for split, languages in splits.items():
        for language, rows in languages.items():
            write(folder / f"{split}-{language}.tsv", rows, columns)


def prepare(data: Path, out: Path, pairs: int, seed: int) -> None:
    """Reads and checks everything before it writes anything."""
    xnli, pawsx = split_xnli(data / "xnli"), split_pawsx(data / "pawsx")
    held_out = [row for split in xnli.values() for row in split["en"]]
    full = training_pairs([data / "nli_en" / name for name in TRAIN_FILES], held_out, seed)
    sample = balanced(full, pairs)
    write_all(out / "xnli", {"train": {"en": sample}, **xnli}, NLI)
    write(out / "xnli" / "full-en.tsv", full, NLI)
    write_all(out / "pawsx", pawsx, PAWS)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="folder of real data; default: $XSALT_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/salt_ablation/data"), help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=20_000, help="of the sample of training pairs; default: 20,000")
    parser.add_argument("--seed", type=int, default=1, help="draws the sample; default: 1")
    options = parser.parse_args(argv)

    def work() -> None:
        data = options.data or (Path(os.environ["XSALT_DATA"]) if os.environ.get("XSALT_DATA") else None)
        if data is None:
            raise UserError("no data: give the folder of real data, or set XSALT_DATA to it")
        if options.pairs < 3:
            raise UserError(f"--pairs {options.pairs}: at least 3, one a label")
        prepare(data, options.out, options.pairs, options.seed)

    return guard("prepare.py", work)


if __name__ == "__main__":
    sys.exit(main())
