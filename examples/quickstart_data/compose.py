"""Frames put together from clauses and phrases.

``clauses_SPLIT.txt`` has one event a block, told by two clauses with a slot, one for premises and one for hypotheses;
``values.txt`` has families of values that exclude each other (parts of the day, companies, reasons), each with a phrase
for hypotheses and phrases for premises that imply it. Every phrase fits every clause. The clauses of the splits are
different, the values are shared; of a value's premise phrases the last one never occurs in training.

    clause a-name | TAGS                              family NAME RELATION
    LL | premise clause {x}. | hypothesis clause {x}. value NAME
                                                      LL | hypothesis phrase | premise phrase | ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from examples.quickstart_data.frames import LANGUAGES, RELATIONS, SPLIT_LANGUAGES, Frame, FrameError, Question

FOLDER = Path(__file__).resolve().parent
CLAUSES: Mapping[str, int] = {"train": 240, "dev": 26, "test": 30}
QUESTIONS: Mapping[str, int] = {"train": 4, "dev": 2, "test": 2}
"""Questions asked about each clause."""

GROUPS = (
    ("part-of-day", "season", "day-of-week", "order", "century"),
    ("in-or-out", "continent", "town-or-country", "weather"),
    ("company", "expert", "number", "help", "animal"),
    ("speed", "duration"),
)
"""Families that say something about one another: a frame has at most one of each group."""
DEPENDENT = frozenset(
    frozenset(pair)
    for pair in (
        ("season", "weather"),
        ("part-of-day", "weather"),
        ("part-of-day", "duration"),
        ("mood", "reason"),
        ("expert", "reason"),
        ("company", "day-of-week"),
        ("in-or-out", "day-of-week"),
        ("in-or-out", "animal"),
        ("town-or-country", "animal"),
        *(pair for group in GROUPS for pair in combinations(group, 2)),
    )
)
NEEDS_TAG = ("animal", "duration", "reason")
"""Families that fit only clauses with the tag of that name."""


COMMON_FIRST_WORDS = frozenset(("A", "An", "Her", "His", "My", "Our", "The", "Their"))


@dataclass(frozen=True)
class Clause:
    """One event; ``texts``: language -> the premise clause and the hypothesis clause, each with one ``{x}``."""

    name: str
    tags: frozenset[str]
    texts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """Values that exclude each other; each is language -> the phrase of hypotheses and the phrases of premises."""

    name: str
    relation: str
    values: tuple[Mapping[str, tuple[str, ...]], ...]


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that say something, each with its ``file:line``."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line and not line.startswith("#"):
            yield f"{path.name}:{number}", line


def read_clauses(path: Path, languages: Sequence[str]) -> list[Clause]:
    """The clauses of a file. Raises ``FrameError`` with ``file:line``."""
    clauses: list[Clause] = []
    for where, line in lines(path):
        if line.startswith("clause "):
            name, _, tags = line[7:].partition(" | ")
            known = frozenset(tags.split()) - {"-"}
            if not known <= set(NEEDS_TAG):
                raise FrameError(f"{where}: unknown tag in {tags!r}; known: {', '.join(NEEDS_TAG)}, or - for none")
            clauses.append(Clause(name, known, {}))
            continue
        language, *texts = line.split(" | ")
        if not clauses or language not in languages or len(texts) != 2:
            raise FrameError(f"{where}: expected 'LL | premise clause | hypothesis clause'")
        if any(text.count("{x}") != 1 for text in texts):
            raise FrameError(f"{where}: a clause needs {{x}} once")
        clauses[-1] = Clause(clauses[-1].name, clauses[-1].tags, {**clauses[-1].texts, language: tuple(texts)})
    for clause in clauses:
        if set(clause.texts) != set(languages):
            raise FrameError(f"{path.name}: {clause.name} is not in all of {', '.join(languages)}")
    return clauses


def read_families(path: Path) -> list[Family]:
    """The families of values. Raises ``FrameError`` with ``file:line``."""
    families: list[Family] = []
    for where, line in lines(path):
        if line.startswith("family "):
            name, _, relation = line[7:].partition(" ")
            if relation not in RELATIONS:
                raise FrameError(f"{where}: unknown relation {relation!r}; known: {', '.join(RELATIONS)}")
            families.append(Family(name, relation, ()))
        elif line.startswith("value "):
            last = families.pop()
            families.append(Family(last.name, last.relation, (*last.values, {})))
        else:
            language, *phrases = line.split(" | ")
            if language not in LANGUAGES or len(set(phrases)) != 5:
                raise FrameError(f"{where}: expected 'LL' and five different phrases")
            last = families.pop()
            value = {**last.values[-1], language: tuple(phrases)}
            families.append(Family(last.name, last.relation, (*last.values[:-1], value)))
    for family in families:
        if len(family.values) < 2 or any(set(value) != set(LANGUAGES) for value in family.values):
            raise FrameError(f"{path.name}: {family.name} needs two values in every language")
    return families


def fill(clause: str, phrase: str) -> str:
    """The sentence."""
    return clause.replace("{x}", phrase)


def front(clause: str, phrase: str) -> str:
    """The English sentence with the phrase at its beginning: "At noon, my aunt ..."."""
    rest = clause.replace(" {x}", "")
    first, _, others = rest.partition(" ")
    rest = f"{first.lower() if first in COMMON_FIRST_WORDS else first} {others}"
    return f"{phrase[0].upper()}{phrase[1:]}, {rest}"


def question(clause: Clause, family: Family, turn: int, split: str) -> Question:
    """The question of a family about a clause: which two values and which of their phrases goes by turns."""
    pairs = list(combinations(range(len(family.values)), 2))
    first, second = (family.values[i] for i in pairs[turn % len(pairs)])
    choices = 3 if split == "train" else 4
    one, other = choices - turn % choices, 1 + (turn // choices + turn) % choices
    # Every second time premise and hypothesis tell the event in the same words, so that the phrases alone differ.
    # In training every fourth premise has the very phrase of the hypothesis: without such rows the difference between
    # entailment and contradiction is found late.
    same_clause, same_phrase = turn % 2 == 0, split == "train" and turn % 4 == 1
    # Other languages have the phrase in the middle or at the beginning; so has English training, every third time each.
    tell, ask = (front if split == "train" and turn % 3 == k else fill for k in (0, 1))
    hypotheses, premises = {}, {}
    for language in SPLIT_LANGUAGES[split]:
        told, asked = clause.texts[language]
        a, b = first[language], second[language]
        hypotheses[language] = (ask(told if same_clause else asked, a[0]), ask(told if same_clause else asked, b[0]))
        premises[language] = (tell(told, a[0 if same_phrase else one]), tell(told, b[0 if same_phrase else other]))
    return Question(family.relation, hypotheses, premises)


def compose(split: str, folder: Path = FOLDER) -> tuple[Frame, ...]:
    """A frame for each clause with as many families as ``QUESTIONS`` says, all families about equally often."""
    families = read_families(folder / "values.txt")
    clauses = read_clauses(folder / f"clauses_{split}.txt", SPLIT_LANGUAGES[split])[: CLAUSES[split]]
    used = dict.fromkeys((family.name for family in families), 0)
    frames = []
    for clause in clauses:
        chosen: list[Family] = []
        while len(chosen) < QUESTIONS[split]:
            free = [
                family
                for family in families
                if family not in chosen
                and (family.name not in NEEDS_TAG or family.name in clause.tags)
                and not any(frozenset((family.name, other.name)) in DEPENDENT for other in chosen)
            ]
            if not free:
                raise FrameError(f"{clause.name}: only {len(chosen)} families go together")
            chosen.append(min(free, key=lambda family: used[family.name]))
            used[chosen[-1].name] += 1
        questions = tuple(question(clause, family, used[family.name] - 1, split) for family in chosen)
        frames.append(Frame(clause.name, questions))
    return tuple(frames)
