"""Write the quick-start NLI files from the frames: ``python -m examples.quickstart_data.generate``.

The output depends on the frames and the seed alone; the committed files under ``xsalt/data/quickstart`` are what seed 1
gives.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.quickstart_data.schema import LABELS, LANGUAGES, RELATIONS, Frame, Text

HEADER = "premise\thypothesis\tlabel"
SEED = 1
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "xsalt" / "data" / "quickstart"
SPLIT_LANGUAGES: Mapping[str, tuple[str, ...]] = {"train": ("en",), "dev": LANGUAGES, "test": LANGUAGES}
SPLIT_ITEMS: Mapping[str, int] = {"train": 1500, "dev": 110, "test": 110}
MAX_DRAWS = 400
NEGATIONS = frozenset(
    ("not", "no", "never", "nobody", "nothing", "none", "neither", "nor", "without", "cannot", "nowhere")
)
MIN_SCRIPT_SHARE = 0.8
SCRIPTS: Mapping[str, str] = {
    "ar": "ARABIC",
    "bg": "CYRILLIC",
    "el": "GREEK",
    "hi": "DEVANAGARI",
    "ru": "CYRILLIC",
    "th": "THAI",
    "ur": "ARABIC",
    "zh": "CJK",
}


class FrameError(ValueError):
    """A frame that cannot be used as it stands."""


@dataclass(frozen=True)
class Row:
    """One line of a file."""

    premise: str
    hypothesis: str
    label: str

    def line(self) -> str:
        """Return the line without its end."""
        return f"{self.premise}\t{self.hypothesis}\t{self.label}"


@dataclass(frozen=True)
class Item:
    """One filling of a frame: by language, one row for each label in the order of ``LABELS``."""

    frame: str
    rows: Mapping[str, tuple[Row, ...]]


def load_frames(split: str) -> tuple[Frame, ...]:
    """Return the frames of a split from the module ``<split>_frames``."""
    module = importlib.import_module(f"examples.quickstart_data.{split}_frames")
    frames = module.FRAMES
    if not isinstance(frames, tuple) or not all(isinstance(frame, Frame) for frame in frames):
        raise FrameError(f"{module.__name__}.FRAMES must be a tuple of Frame")
    return frames


def premises(frame: Frame) -> Mapping[str, Sequence[Text]]:
    """Return the premise templates by label."""
    return {"entailment": frame.entailment, "neutral": frame.neutral, "contradiction": frame.contradiction}


def templates(frame: Frame) -> Iterator[tuple[str, Text]]:
    """Yield each template of a frame with a name for messages."""
    yield "hypothesis", frame.hypothesis
    for label, texts in premises(frame).items():
        for number, text in enumerate(texts):
            yield f"{label}[{number}]", text


def slot_names(template: str, where: str) -> frozenset[str]:
    """Return the slots that a template names; reject stray braces and format specifications."""
    names = set()
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise FrameError(f"{where}: bad braces in {template!r}: {error}") from error
    for literal, name, spec, conversion in parts:
        if "{" in literal or "}" in literal:
            raise FrameError(f"{where}: stray brace in {template!r}")
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise FrameError(f"{where}: bad slot {name!r} in {template!r}")
        names.add(name)
    return frozenset(names)


def check_plain(text: str, where: str) -> None:
    """Reject text that is empty or holds white space that a TSV field should not."""
    if not text or text != text.strip():
        raise FrameError(f"{where}: empty, or white space at an end: {text!r}")
    if re.search(r"[\t\r\n]| {2}", text):
        raise FrameError(f"{where}: tab, line end or double space in {text!r}")


def check_script(template: str, language: str, where: str) -> None:
    """Reject a template whose letters are mostly of another script than the language is written in."""
    literal = "".join(part[0] for part in string.Formatter().parse(template))
    letters = [unicodedata.name(char, "") for char in literal if char.isalpha()]
    script = SCRIPTS.get(language, "LATIN")
    if letters and sum(name.startswith(script) for name in letters) / len(letters) < MIN_SCRIPT_SHARE:
        raise FrameError(f"{where}: not written in {script.lower()} script: {template!r}")


def check_languages(text: Text, languages: Sequence[str], where: str) -> None:
    """Reject a text that lacks a language or has one that does not exist."""
    missing = [language for language in languages if language not in text]
    if missing:
        raise FrameError(f"{where}: no text for {', '.join(missing)}")
    unknown = sorted(set(text) - set(LANGUAGES))
    if unknown:
        raise FrameError(f"{where}: unknown language {', '.join(unknown)}")


def check_frame(frame: Frame, languages: Sequence[str]) -> None:
    """Raise FrameError with the place and the cause if a frame is broken."""
    if frame.relation not in RELATIONS:
        raise FrameError(f"{frame.name}: unknown relation {frame.relation!r}")
    for label, texts in premises(frame).items():
        if not texts:
            raise FrameError(f"{frame.name}: no premise for {label}")
    for slot, values in frame.slots.items():
        if not values:
            raise FrameError(f"{frame.name}: slot {slot!r} has no values")
        for number, value in enumerate(values):
            where = f"{frame.name}: slot {slot}[{number}]"
            check_languages(value, languages, where)
            for language, text in value.items():
                check_plain(text, f"{where} ({language})")
                if "{" in text or "}" in text:
                    raise FrameError(f"{where} ({language}): brace in the value {text!r}")
    used: set[str] = set()
    for part, template in templates(frame):
        where = f"{frame.name}: {part}"
        check_languages(template, languages, where)
        found = {}
        for language, text in template.items():
            check_plain(text, f"{where} ({language})")
            found[language] = slot_names(text, f"{where} ({language})")
            check_script(text, language, f"{where} ({language})")
        first = found[languages[0]]
        for language, names in found.items():
            if names != first:
                raise FrameError(
                    f"{where}: {language} has the slots {sorted(names)}, but {languages[0]} has {sorted(first)}"
                )
        unknown = sorted(first - set(frame.slots))
        if unknown:
            raise FrameError(f"{where}: undefined slot {', '.join(unknown)}")
        if len(set(template.values())) < len(template):
            raise FrameError(f"{where}: the same text for two languages")
        used |= first
    unused = sorted(set(frame.slots) - used)
    if unused:
        raise FrameError(f"{frame.name}: unused slot {', '.join(unused)}")


def check_frames(splits: Mapping[str, Sequence[Frame]]) -> None:
    """Check every frame, that names are unique, and that no template is used in two splits."""
    names: dict[str, str] = {}
    seen: dict[tuple[str, str], tuple[str, str, str]] = {}
    for split, frames in splits.items():
        for frame in frames:
            if frame.name in names:
                raise FrameError(f"{frame.name}: the name is used twice ({names[frame.name]} and {split})")
            names[frame.name] = split
            check_frame(frame, SPLIT_LANGUAGES[split])
            for part, template in templates(frame):
                for language, text in template.items():
                    key = (language, re.sub(r"\{\w+\}", "{}", text).casefold())
                    owner, other, place = seen.setdefault(key, (split, frame.name, part))
                    if owner != split:
                        raise FrameError(
                            f"{split}: {frame.name}: {part} ({language}) repeats {place} of {other} in {owner}: {text!r}"
                        )


def fill(template: str, values: Mapping[str, str], language: str) -> str:
    """Fill the slots, put the first letter in upper case, and normalise to NFC."""
    text = template.format_map(values)
    head = "İ" if language == "tr" and text[0] == "i" else text[0].upper()
    return unicodedata.normalize("NFC", head + text[1:])


def draws(frame: Frame, rng: random.Random) -> Iterator[dict[str, Text]]:
    """Yield fillings in which every value of a slot is used once before any is used again."""
    bags: dict[str, list[Text]] = {slot: [] for slot in frame.slots}
    while True:
        chosen = {}
        for slot, bag in bags.items():
            if not bag:
                bag.extend(frame.slots[slot])
                rng.shuffle(bag)
            chosen[slot] = bag.pop()
        yield chosen


def make_items(frame: Frame, languages: Sequence[str], limit: int, seed: str) -> list[Item]:
    """Return up to ``limit`` fillings of a frame; no row occurs twice in any language."""
    rng = random.Random(f"{seed}/{frame.name}")
    items: list[Item] = []
    seen: set[tuple[str, str, str]] = set()
    fillings = draws(frame, rng)
    for _ in range(MAX_DRAWS):
        if len(items) == limit:
            break
        chosen = next(fillings)
        if len({value[languages[0]] for value in chosen.values()}) < len(chosen):
            continue  # two slots with the same value, such as two people with one name
        rows: dict[str, tuple[Row, ...]] = {}
        for language in languages:
            values = {slot: value[language] for slot, value in chosen.items()}
            hypothesis = fill(frame.hypothesis[language], values, language)
            turn, row_list = len(items), []
            for label, texts in premises(frame).items():  # every combination of the labels' templates has its turn
                turn, template = divmod(turn, len(texts))
                row_list.append(Row(fill(texts[template][language], values, language), hypothesis, label))
            rows[language] = tuple(row_list)
        keys = {(language, row.premise, row.hypothesis) for language in languages for row in rows[language]}
        if len(keys) < len(languages) * len(LABELS):
            raise FrameError(f"{frame.name}: one premise for two labels")
        if any(row.premise == row.hypothesis for row in rows[languages[0]]):
            raise FrameError(f"{frame.name}: the premise is the hypothesis")
        if seen.isdisjoint(keys):
            seen |= keys
            items.append(Item(frame.name, rows))
    return items


def overlap(row: Row) -> list[float]:
    """What a reader of word overlap, length and negation words sees of a row; squares and products included."""
    premise, hypothesis = (re.findall(r"[\w']+", text.lower()) for text in (row.premise, row.hypothesis))
    both, p, h = len(set(premise) & set(hypothesis)), len(set(premise)), len(set(hypothesis))
    negated = [any(w in NEGATIONS or w.endswith("n't") for w in text) for text in (premise, hypothesis)]
    base = [both / (p + h - both), both / h, both / p, (len(premise) - len(hypothesis)) / 10]
    base += [float(negated[0]), float(negated[0] != negated[1])]
    return base + [a * b for i, a in enumerate(base) for b in base[i:]]


class Balance:
    """Sums of the overlap features by label, which are kept as equal as the choice of items allows."""

    def __init__(self) -> None:
        self.sums: list[list[float]] = []

    def with_item(self, item: Item) -> list[list[float]]:
        """The sums if the item were added."""
        rows = [overlap(row) for row in item.rows["en"]]
        return [[a + b for a, b in zip(*pair)] for pair in zip(self.sums, rows)] if self.sums else rows

    def take_best(self, items: list[Item]) -> Item:
        """Removes from the items the one that leaves the labels most alike, and adds it."""

        def unlike(item: Item) -> float:
            sums = self.with_item(item)
            means = [sum(column) / len(sums) for column in zip(*sums)]
            return float(sum((value - mean) ** 2 for row in sums for value, mean in zip(row, means)))

        best = items.pop(min(range(len(items)), key=lambda i: round(unlike(items[i]), 9)))
        self.sums = self.with_item(best)
        return best


def choose_items(frames: Sequence[Frame], languages: Sequence[str], total: int, seed: str) -> list[Item]:
    """Return ``total`` items, spread over the frames as evenly as their fillings allow.

    Of each frame's fillings those are taken that leave overlap, length and negation equal over the labels, so that a
    shallow reader learns nothing.
    """
    order = list(frames)
    random.Random(f"{seed}/order").shuffle(order)
    limit = 4 * -(-total // max(1, len(order)))
    supply = [make_items(frame, languages, limit, seed) for frame in order]
    chosen: list[Item] = []
    balance = Balance()
    while len(chosen) < total and any(supply):
        for items in supply:
            if items and len(chosen) < total:
                chosen.append(balance.take_best(items))
    if len(chosen) < total:
        raise FrameError(f"{len(frames)} frames give {len(chosen)} items, but {total} are wanted: add frames or slots")
    return chosen


def build(splits: Mapping[str, Sequence[Frame]], seed: int = SEED) -> dict[str, list[Row]]:
    """Return the rows of each file by its name, such as ``dev-de``."""
    check_frames(splits)
    files: dict[str, list[Row]] = {}
    for split, frames in splits.items():
        languages = SPLIT_LANGUAGES[split]
        items = choose_items(frames, languages, SPLIT_ITEMS[split], f"{seed}/{split}")
        places = [(item, label) for item in range(len(items)) for label in range(len(LABELS))]
        random.Random(f"{seed}/{split}/rows").shuffle(places)
        for language in languages:
            files[f"{split}-{language}"] = [items[item].rows[language][label] for item, label in places]
    check_rows(files)
    return files


def check_rows(files: Mapping[str, Sequence[Row]]) -> None:
    """Check the finished rows: clean fields, no duplicates, and no sentence in two splits."""
    owner: dict[tuple[str, str], str] = {}
    for name, rows in files.items():
        split, language = name.split("-")
        pairs: set[tuple[str, str]] = set()
        for row in rows:
            for text in (row.premise, row.hypothesis):
                check_plain(text, name)
                if "{" in text or "}" in text:
                    raise FrameError(f"{name}: a brace is left in {text!r}")
                if owner.setdefault((language, text), split) != split:
                    raise FrameError(f"{name}: {text!r} is also in {owner[language, text]}-{language}")
            if (row.premise, row.hypothesis) in pairs:
                raise FrameError(f"{name}: the pair {row.premise!r}, {row.hypothesis!r} occurs twice")
            pairs.add((row.premise, row.hypothesis))


def write(files: Mapping[str, Sequence[Row]], out: Path) -> None:
    """Write one TSV file for each entry."""
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "\n".join([HEADER, *(row.line() for row in rows)]) + "\n"
        (out / f"{name}.tsv").write_bytes(text.encode("utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.quickstart_data.generate", description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the fillings and the order (default: 1)")
    parser.add_argument("--splits", nargs="+", choices=tuple(SPLIT_LANGUAGES), default=list(SPLIT_LANGUAGES))
    args = parser.parse_args(argv)
    try:
        splits = {split: load_frames(split) for split in SPLIT_LANGUAGES if split in args.splits}
        files = build(splits, args.seed)
    except FrameError as error:
        parser.exit(1, f"error: {error}\n")
    write(files, args.out)
    for split, frames in splits.items():
        languages = SPLIT_LANGUAGES[split]
        print(f"{split}: {len(frames)} frames, {len(languages)} languages, {len(files[f'{split}-en'])} rows each")


if __name__ == "__main__":
    main()
