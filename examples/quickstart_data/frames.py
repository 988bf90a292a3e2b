"""What a frame of the quick-start NLI set is, and how its files are read and checked.

A frame is one everyday situation with independent questions about it. A question is an attribute of the situation with
two values that exclude each other; for each value there is a hypothesis that states it and a premise that implies it:

    frame a-name
    question RELATION
    LL | hypothesis A | premise A | hypothesis B | premise B

Premise A proves hypothesis A, refutes hypothesis B, and says nothing about the frame's other questions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
LABELS = ("entailment", "neutral", "contradiction")
RELATIONS = ("negation", "quantity", "time", "place", "lexical", "comparison", "cause", "knowledge", "paraphrase")
SPLIT_LANGUAGES: Mapping[str, tuple[str, ...]] = {"train": ("en",), "dev": LANGUAGES, "test": LANGUAGES}
FOLDER = Path(__file__).resolve().parent / "frames"

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
class Question:
    """One attribute of a situation.

    Attributes:
        relation: what ties premise to hypothesis, one of ``RELATIONS``.
        hypotheses: language -> the sentences that state value A and value B.
        premises: language -> the sentences that imply value A and value B.
    """

    relation: str
    hypotheses: Mapping[str, tuple[str, str]]
    premises: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Frame:
    """One situation; ``name`` is unique over all splits, and ``questions`` are at least two."""

    name: str
    questions: tuple[Question, ...]


def load_frames(split: str, folder: Path = FOLDER) -> tuple[Frame, ...]:
    """The frames of the files ``SPLIT_*.txt``. Raises ``FrameError`` with ``file:line`` for what does not read."""
    paths = sorted(folder.glob(f"{split}_*.txt"))
    if not paths:
        raise FrameError(f"{folder}: no file {split}_*.txt")
    return tuple(frame for path in paths for frame in read_frames(path, SPLIT_LANGUAGES[split]))


def read_frames(path: Path, languages: Sequence[str]) -> list[Frame]:
    """The frames of one file, each question in exactly these languages."""
    frames: list[Frame] = []
    questions: list[Question] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        where = f"{path.name}:{number}"
        kind, _, rest = line.partition(" ")
        if not line or line.startswith("#"):
            continue
        if kind == "frame":
            check_complete(frames, languages)
            questions = []
            if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rest):
                raise FrameError(f"{where}: bad frame name {rest!r}")
            frames.append(Frame(rest, ()))
        elif kind == "question":
            if not frames:
                raise FrameError(f"{where}: a question before the first frame")
            if rest not in RELATIONS:
                raise FrameError(f"{where}: unknown relation {rest!r}; known: {', '.join(RELATIONS)}")
            questions.append(Question(rest, {}, {}))
            frames[-1] = Frame(frames[-1].name, tuple(questions))
        else:
            if not questions:
                raise FrameError(f"{where}: a sentence before the first question")
            language, *sentences = line.split(" | ")
            question = questions[-1]
            if language not in languages or language in question.premises:
                raise FrameError(f"{where}: language {language!r} is unknown here or occurs twice")
            if len(sentences) != 4:
                raise FrameError(f"{where}: {len(sentences)} sentences, expected 4")
            for sentence in sentences:
                check_sentence(sentence, language, where)
            first, second, third, fourth = (unicodedata.normalize("NFC", sentence) for sentence in sentences)
            questions[-1] = Question(
                question.relation,
                {**question.hypotheses, language: (first, third)},
                {**question.premises, language: (second, fourth)},
            )
            frames[-1] = Frame(frames[-1].name, tuple(questions))
    check_complete(frames, languages)
    return frames


def check_complete(frames: Sequence[Frame], languages: Sequence[str]) -> None:
    """Raises ``FrameError`` if the last frame has less than two questions or a question lacks a language."""
    if not frames:
        return
    frame = frames[-1]
    if len(frame.questions) < 2:
        raise FrameError(f"{frame.name}: {len(frame.questions)} questions, expected at least 2")
    for number, question in enumerate(frame.questions, start=1):
        missing = [language for language in languages if language not in question.premises]
        if missing:
            raise FrameError(f"{frame.name}: question {number} has no text for {', '.join(missing)}")


def check_sentence(text: str, language: str, where: str) -> None:
    """Rejects an empty text, white space that a TSV field should not have, and letters of another script."""
    if not text or text != text.strip() or re.search(r"[\t\r\n|]| {2}", text):
        raise FrameError(f"{where}: empty, or white space or a bar out of place: {text!r}")
    letters = [unicodedata.name(char, "") for char in text if char.isalpha()]
    script = SCRIPTS.get(language, "LATIN")
    if letters and sum(name.startswith(script) for name in letters) / len(letters) < MIN_SCRIPT_SHARE:
        raise FrameError(f"{where}: not written in {script.lower()} script: {text!r}")


def sentences(frame: Frame) -> Iterator[tuple[str, str]]:
    """Every sentence of a frame with its language."""
    for question in frame.questions:
        for texts in (question.hypotheses, question.premises):
            for language, pair in texts.items():
                for text in pair:
                    yield language, text


def check_unique(splits: Mapping[str, Sequence[Frame]]) -> None:
    """Raises ``FrameError`` if a frame's name or a sentence occurs twice, within a split or in two."""
    names: dict[str, str] = {}
    owners: dict[tuple[str, str], str] = {}
    for split, frames in splits.items():
        for frame in frames:
            place = f"{split}: {frame.name}"
            if frame.name in names:
                raise FrameError(f"{place}: the name is used twice, also in {names[frame.name]}")
            names[frame.name] = split
            for language, text in sentences(frame):
                key = (language, text.casefold())
                if key in owners:
                    raise FrameError(f"{place}: {text!r} ({language}) is also in {owners[key]}")
                owners[key] = place
