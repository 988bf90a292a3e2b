"""Write the quick-start NLI files: ``python -m examples.quickstart_data.generate``.

There are two sets of frames: ``composed`` ones (``compose.py``), which the package carries, and hand-written
``situations`` (``frames/``), which are harder. The output depends on the frames and the seed alone; the committed files
under ``xsalt/data/quickstart`` are what seed 1 gives.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.quickstart_data.compose import compose
from examples.quickstart_data.frames import (
    LABELS,
    SPLIT_LANGUAGES,
    Frame,
    FrameError,
    check_unique,
    load_frames,
)

HEADER = "premise\thypothesis\tlabel"
SEED = 1
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "xsalt" / "data" / "quickstart"
SETS: Mapping[str, Callable[[str], Sequence[Frame]]] = {"composed": compose, "situations": load_frames}
MAX_PAIRINGS = 200
NEGATIONS = frozenset(
    ("not", "no", "never", "nobody", "nothing", "none", "neither", "nor", "without", "cannot", "nowhere")
)

Place = tuple[int, int]
"""Number of a question in its frame, and of a value (0 or 1)."""


@dataclass(frozen=True)
class Row:
    """One line of a file."""

    premise: str
    hypothesis: str
    label: str

    def line(self) -> str:
        """The line without its end."""
        return f"{self.premise}\t{self.hypothesis}\t{self.label}"


def pairings(frame: Frame, rng: random.Random) -> Iterator[dict[Place, Place]]:
    """Ways to give each hypothesis the premise of another question, each premise once: its neutral row.

    So every sentence of the set occurs equally often with each label, hypotheses and premises alike.
    """
    places = [(question, value) for question in range(len(frame.questions)) for value in (0, 1)]
    seen: set[tuple[Place, ...]] = set()
    for _ in range(MAX_PAIRINGS):
        premises = list(places)
        rng.shuffle(premises)
        if all(mine[0] != other[0] for mine, other in zip(places, premises)) and tuple(premises) not in seen:
            seen.add(tuple(premises))
            yield dict(zip(places, premises))


def frame_rows(frame: Frame, neutral: Mapping[Place, Place], language: str) -> list[Row]:
    """The rows of a frame in one language: for each hypothesis one row a label, in the order of ``LABELS``."""
    rows = []
    for (question, value), (other, other_value) in neutral.items():
        asked = frame.questions[question]
        hypothesis = asked.hypotheses[language][value]
        premises = (
            asked.premises[language][value],
            frame.questions[other].premises[language][other_value],
            asked.premises[language][1 - value],
        )
        rows += [Row(premise, hypothesis, label) for premise, label in zip(premises, LABELS)]
    return rows


def overlap(row: Row) -> list[float]:
    """What a reader of word overlap, length and negation words sees of a row; squares and products included."""
    premise, hypothesis = (re.findall(r"[\w']+", text.lower()) for text in (row.premise, row.hypothesis))
    both, p, h = len(set(premise) & set(hypothesis)), len(set(premise)), len(set(hypothesis))
    negated = [any(w in NEGATIONS or w.endswith("n't") for w in text) for text in (premise, hypothesis)]
    base = [both / (p + h - both), both / h, both / p, (len(premise) - len(hypothesis)) / 10]
    base += [float(negated[0]), float(negated[0] != negated[1])]
    return base + [a * b for i, a in enumerate(base) for b in base[i:]]


def choose_neutral(frames: Sequence[Frame], seed: str) -> list[dict[Place, Place]]:
    """For each frame the pairing that leaves overlap, length and negation words most alike over the labels."""
    sums = [[0.0] * len(overlap(Row("x", "x", ""))) for _ in LABELS]
    chosen = []
    for frame in frames:
        best: tuple[float, dict[Place, Place], list[list[float]]] | None = None
        for neutral in pairings(frame, random.Random(f"{seed}/{frame.name}")):
            features = [overlap(row) for row in frame_rows(frame, neutral, "en")]
            after = [
                [sum(column) for column in zip(total, *features[label :: len(LABELS)])]
                for label, total in enumerate(sums)
            ]
            means = [sum(column) / len(after) for column in zip(*after)]
            unlike = round(sum((value - mean) ** 2 for total in after for value, mean in zip(total, means)), 9)
            if best is None or unlike < best[0]:
                best = (unlike, neutral, after)
        if best is None:
            raise FrameError(f"{frame.name}: no premise of another question for each hypothesis")
        chosen.append(best[1])
        sums = best[2]
    return chosen


def build(splits: Mapping[str, Sequence[Frame]], seed: int = SEED) -> dict[str, list[Row]]:
    """The rows of each file by its name, such as ``dev-de``; row-parallel over the languages of a split."""
    check_unique(splits)
    files: dict[str, list[Row]] = {}
    for split, frames in splits.items():
        neutral = choose_neutral(frames, f"{seed}/{split}")
        for language in SPLIT_LANGUAGES[split]:
            rows = [row for frame, pairing in zip(frames, neutral) for row in frame_rows(frame, pairing, language)]
            random.Random(f"{seed}/{split}/rows").shuffle(rows)
            files[f"{split}-{language}"] = rows
    return files


def write(files: Mapping[str, Sequence[Row]], out: Path) -> None:
    """Writes one TSV file for each entry."""
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "\n".join([HEADER, *(row.line() for row in rows)]) + "\n"
        (out / f"{name}.tsv").write_bytes(text.encode("utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.quickstart_data.generate", description=__doc__)
    parser.add_argument("--set", choices=tuple(SETS), default="composed", help="which frames (default: composed)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the pairing and the order (default: 1)")
    parser.add_argument("--splits", nargs="+", choices=tuple(SPLIT_LANGUAGES), default=list(SPLIT_LANGUAGES))
    args = parser.parse_args(argv)
    try:
        splits = {split: SETS[args.set](split) for split in SPLIT_LANGUAGES if split in args.splits}
        files = build(splits, args.seed)
    except FrameError as error:
        parser.exit(1, f"error: {error}\n")
    write(files, args.out)
    for split, frames in splits.items():
        languages = SPLIT_LANGUAGES[split]
        print(f"{split}: {len(frames)} frames, {len(languages)} languages, {len(files[f'{split}-en'])} rows each")


if __name__ == "__main__":
    main()
