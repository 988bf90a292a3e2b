"""The embedded quick-start NLI set: it can be rebuilt, it is well formed, and shallow cues do not solve it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.quickstart_data import generate
from examples.quickstart_data.schema import LABELS, LANGUAGES, Frame

DATA = Path(__file__).resolve().parents[3] / "xsalt" / "data" / "quickstart"
NAMES = ["train-en", *(f"{split}-{language}" for split in ("dev", "test") for language in LANGUAGES)]
NEGATION = {"no", "not", "never", "nobody", "nothing", "neither", "nor", "none", "nowhere", "without", "cannot"}
NEGATION |= {"hardly", "unable", "refused"}

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
Row = tuple[str, str, str]


def read(name: str) -> list[Row]:
    lines = (DATA / f"{name}.tsv").read_text(encoding="utf-8").split("\n")
    assert lines[0] == generate.HEADER
    assert lines[-1] == ""
    rows = []
    for line in lines[1:-1]:
        premise, hypothesis, label = line.split("\t")
        rows.append((premise, hypothesis, label))
    return rows


@pytest.fixture(scope="module")
def files() -> dict[str, list[Row]]:
    return {name: read(name) for name in NAMES}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())


def targets(rows: Sequence[Row]) -> Labels:
    return np.array([LABELS.index(row[2]) for row in rows], dtype=np.int64)


def softmax_fit(x: Matrix, y: Labels, l2: float, steps: int = 200) -> Matrix:
    """Multinomial logistic regression by Adam; the last column of ``x`` is the bias."""
    onehot = np.eye(len(LABELS))[y]
    weights = np.zeros((x.shape[1], len(LABELS)))
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, steps + 1):
        scores = x @ weights
        scores -= scores.max(axis=1, keepdims=True)
        exp = np.exp(scores)
        gradient = x.T @ (exp / exp.sum(axis=1, keepdims=True) - onehot) / len(y) + l2 * weights
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        weights -= 0.05 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
    return weights


def accuracy(x: Matrix, y: Labels, weights: Matrix) -> float:
    return float(((x @ weights).argmax(axis=1) == y).mean())


def ngrams(text: str) -> list[str]:
    tokens = words(text)
    return tokens + [f"{a} {b}" for a, b in pairwise(tokens)]


def bag(texts: Sequence[str], vocabulary: dict[str, int]) -> Matrix:
    x = np.zeros((len(texts), len(vocabulary) + 1))
    x[:, -1] = 1.0
    for index, text in enumerate(texts):
        for gram in ngrams(text):
            if gram in vocabulary:
                x[index, vocabulary[gram]] = 1.0
    return x


def bag_accuracy(train: Sequence[Row], tests: Sequence[Sequence[Row]], field: int) -> list[float]:
    """Fit on one field of the training rows; return the accuracy on each list of test rows."""
    counts = Counter(gram for row in train for gram in set(ngrams(row[field])))
    kept = sorted(gram for gram, count in counts.items() if count >= 10)
    vocabulary = {gram: index for index, gram in enumerate(kept)}
    weights = softmax_fit(bag([row[field] for row in train], vocabulary), targets(train), l2=1e-3, steps=60)
    return [accuracy(bag([row[field] for row in rows], vocabulary), targets(rows), weights) for rows in tests]


def overlap_features(rows: Sequence[Row]) -> Matrix:
    features = []
    for premise, hypothesis, _ in rows:
        p, h = words(premise), words(hypothesis)
        both = len(set(p) & set(h))
        p_neg, h_neg = (any(w in NEGATION or w.endswith("n't") for w in text) for text in (p, h))
        features.append(
            (
                both / len(set(p) | set(h)),
                both / len(set(h)),
                both / len(set(p)),
                (len(p) - len(h)) / 10.0,
                float(p_neg != h_neg),
                float(p_neg),
                float(h_neg),
            )
        )
    return np.array(features)


def products(base: Matrix) -> Matrix:
    """Add squares, interactions and a bias."""
    pairs = [base[:, i] * base[:, j] for i in range(base.shape[1]) for j in range(i, base.shape[1])]
    return np.column_stack([base, *pairs, np.ones(len(base))])


def bins(base: Matrix) -> Matrix:
    """One indicator for each cell of overlap x length difference x negation mismatch."""
    overlap = np.digitize(base[:, 1], (0.4, 0.6, 0.75, 0.9))
    length = np.digitize(base[:, 3], (0.2, 0.5, 0.9))
    cell = (overlap * 4 + length) * 2 + base[:, 4].astype(np.int64)
    return np.column_stack([np.eye(40)[cell], np.ones(len(base))])


def folds(rows: Sequence[Row], count: int = 5) -> list[tuple[list[Row], list[Row]]]:
    """Split the training rows by frame, so that no template is on both sides."""
    items = {}
    frames = generate.load_frames("train")
    for item in generate.choose_items(frames, ("en",), generate.SPLIT_ITEMS["train"], f"{generate.SEED}/train"):
        for row in item.rows["en"]:
            items[row.premise, row.hypothesis] = item.frame.removesuffix("-flipped")
    order = sorted(set(items.values()))
    np.random.default_rng(0).shuffle(order)
    fold_of = {frame: index % count for index, frame in enumerate(order)}
    parts = []
    for fold in range(count):
        held = [row for row in rows if fold_of[items[row[0], row[1]]] == fold]
        rest = [row for row in rows if fold_of[items[row[0], row[1]]] != fold]
        parts.append((rest, held))
    return parts


def test_generator_reproduces_the_files(tmp_path: Path) -> None:
    generate.main(["--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.tsv" for name in NAMES)
    for name in NAMES:
        assert (tmp_path / f"{name}.tsv").read_bytes() == (DATA / f"{name}.tsv").read_bytes(), name


def test_another_seed_gives_other_rows() -> None:
    frames = {"train": generate.load_frames("train")}
    assert generate.build(frames, seed=2) != generate.build(frames, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_file_is_balanced_and_clean(files: dict[str, list[Row]], name: str) -> None:
    rows = files[name]
    counts = Counter(row[2] for row in rows)
    assert set(counts) == set(LABELS)
    assert len(set(counts.values())) == 1
    assert len(rows) >= (4000 if name == "train-en" else 300)
    assert len({row[:2] for row in rows}) == len(rows)
    assert b"\r" not in (DATA / f"{name}.tsv").read_bytes()
    assert all(not re.search(r"[{}]|  |^\s|\s$", text) for row in rows for text in row)


@pytest.mark.parametrize("name", NAMES)
def test_each_hypothesis_has_every_label_equally(files: dict[str, list[Row]], name: str) -> None:
    by_label = [Counter(row[1] for row in files[name] if row[2] == label) for label in LABELS]
    assert by_label[0] == by_label[1] == by_label[2]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_languages_are_row_parallel(split: str) -> None:
    """Read language by language, every row comes from the same filling of the same template."""
    frames = generate.load_frames(split)
    built = generate.build({split: frames})
    source: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
    items = generate.choose_items(frames, LANGUAGES, generate.SPLIT_ITEMS[split], f"{generate.SEED}/{split}")
    for number, item in enumerate(items):
        for language in LANGUAGES:
            for row in item.rows[language]:
                key = (language, row.premise, row.hypothesis)
                source.setdefault(key, set()).add((str(number), row.label))
    for index in range(len(built[f"{split}-en"])):
        rows = {language: built[f"{split}-{language}"][index] for language in LANGUAGES}
        origins = [source[language, row.premise, row.hypothesis] for language, row in rows.items()]
        assert len(origins[0]) == 1
        assert all(origin == origins[0] for origin in origins)


def test_no_text_is_shared_between_splits(files: dict[str, list[Row]]) -> None:
    sentences: dict[str, dict[str, set[str]]] = {}
    for name, rows in files.items():
        split, language = name.split("-")
        sentences.setdefault(language, {})[split] = {text for row in rows for text in row[:2]}
    for splits in sentences.values():
        kinds = sorted(splits)
        for i, one in enumerate(kinds):
            for other in kinds[i + 1 :]:
                assert splits[one].isdisjoint(splits[other])
    templates = [
        {text["en"] for frame in generate.load_frames(split) for _, text in generate.templates(frame)}
        for split in ("train", "dev", "test")
    ]
    assert templates[0].isdisjoint(templates[1])
    assert templates[0].isdisjoint(templates[2])
    assert templates[1].isdisjoint(templates[2])


def test_hypothesis_alone_is_at_chance(files: dict[str, list[Row]]) -> None:
    scores = bag_accuracy(files["train-en"], [files["dev-en"], files["test-en"]], field=1)
    print("hypothesis-only dev, test:", scores)
    assert max(scores) < 0.5


def test_premise_alone_is_far_from_enough(files: dict[str, list[Row]]) -> None:
    """Premises come in few kinds, so some say more than they should; the README of the set gives the figures."""
    scores = bag_accuracy(files["train-en"], [files["dev-en"], files["test-en"]], field=0)
    print("premise-only dev, test:", scores)
    assert max(scores) < 0.7


def test_premise_alone_is_weak_on_unseen_training_frames(files: dict[str, list[Row]]) -> None:
    parts = [(bag_accuracy(rest, [held], field=0)[0], len(held)) for rest, held in folds(files["train-en"], 3)]
    score = sum(value * size for value, size in parts) / sum(size for _, size in parts)
    print("premise-only, train by frame:", score)
    assert score < 0.55


@pytest.mark.parametrize("expand", [products, bins])
def test_overlap_does_not_give_the_label(files: dict[str, list[Row]], expand: Callable[[Matrix], Matrix]) -> None:
    train = files["train-en"]
    weights = softmax_fit(expand(overlap_features(train)), targets(train), l2=1e-5, steps=400)
    scores = [accuracy(expand(overlap_features(files[n])), targets(files[n]), weights) for n in ("dev-en", "test-en")]
    held_out = []
    for rest, held in folds(train):
        weights = softmax_fit(expand(overlap_features(rest)), targets(rest), l2=1e-5, steps=400)
        held_out += [accuracy(expand(overlap_features(held)), targets(held), weights)] * len(held)
    print("overlap-only dev, test, train by frame:", scores, np.mean(held_out))
    assert max(scores) < 0.5
    assert np.mean(held_out) < 0.5


def test_negation_words_are_spread_over_the_labels(files: dict[str, list[Row]]) -> None:
    counts = Counter(row[2] for row in files["train-en"] if NEGATION & set(words(row[0])))
    total = sum(counts.values())
    print("premises with negation:", {label: counts[label] / total for label in LABELS})
    assert max(counts.values()) < 0.5 * total


def small_frame() -> Frame:
    def every(text: str) -> dict[str, str]:
        return {"en": text}

    return Frame(
        name="small",
        relation="time",
        hypothesis=every("{who} is at work."),
        entailment=(every("{who} came to work and is still there."),),
        neutral=(every("{who} has a new job."),),
        contradiction=(every("{who} has gone home."),),
        slots={"who": (every("Tom"), every("Anna"))},
    )


def test_a_good_frame_passes() -> None:
    frame = small_frame()
    generate.check_frames({"train": [frame]})
    items = generate.make_items(frame, ("en",), 5, "0")
    assert len(items) == 2
    assert {row.label for row in items[0].rows["en"]} == set(LABELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relation": "colour"}, "unknown relation"),
        ({"neutral": ()}, "no premise for neutral"),
        ({"neutral": ({"de": "{who} hat eine neue Stelle."},)}, "no text for en"),
        ({"hypothesis": {"en": "{who} is at work.", "xx": "{who} is at work."}}, "unknown language xx"),
        ({"hypothesis": {"en": "{who} is at work.", "de": "Er ist bei der Arbeit."}}, "has the slots"),
        ({"hypothesis": {"en": "{who} is at work.", "de": "{who} is at work."}}, "same text for two languages"),
        ({"hypothesis": {"en": "{who} is at work.", "ru": "{who} is not at work."}}, "not written in cyrillic"),
        ({"hypothesis": {"en": "{name} is at work."}}, "undefined slot name"),
        ({"hypothesis": {"en": "{who is at work."}}, "bad braces"),
        ({"hypothesis": {"en": "{who} is }} at work."}}, "stray brace"),
        ({"hypothesis": {"en": "{who!r} is at work."}}, "bad slot"),
        ({"hypothesis": {"en": "{who} is  at work."}}, "double space"),
        ({"hypothesis": {"en": "{who} is\tat work."}}, "tab"),
        ({"hypothesis": {"en": " {who} is at work."}}, "white space at an end"),
        ({"slots": {"who": ()}}, "has no values"),
        ({"slots": {"who": ({"de": "Anna"},)}}, "no text for en"),
        ({"slots": {"who": ({"en": "Anna"},), "day": ({"en": "Monday"},)}}, "unused slot day"),
        ({"slots": {"who": ({"en": "{Anna}"},)}}, "brace in the value"),
    ],
)
def test_a_broken_frame_is_named(change: dict[str, object], message: str) -> None:
    broken = replace(small_frame(), **change)  # type: ignore[arg-type]
    with pytest.raises(generate.FrameError, match=f"small.*{message}"):
        generate.check_frames({"train": [broken]})


def test_dev_needs_every_language() -> None:
    with pytest.raises(generate.FrameError, match="no text for ar, bg"):
        generate.check_frames({"dev": [small_frame()]})


def test_names_and_templates_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "SPLIT_LANGUAGES", {"train": ("en",), "dev": ("en",)})
    frame = small_frame()
    with pytest.raises(generate.FrameError, match="used twice"):
        generate.check_frames({"train": [frame, frame]})
    generate.check_frames({"train": [frame, replace(frame, name="other")]})
    with pytest.raises(generate.FrameError, match="repeats hypothesis of small in train"):
        generate.check_frames({"train": [frame], "dev": [replace(frame, name="other")]})


def test_one_premise_cannot_have_two_labels() -> None:
    frame = small_frame()
    with pytest.raises(generate.FrameError, match="one premise for two labels"):
        generate.make_items(replace(frame, neutral=frame.entailment), ("en",), 5, "0")
    with pytest.raises(generate.FrameError, match="the premise is the hypothesis"):
        generate.make_items(replace(frame, entailment=(frame.hypothesis,)), ("en",), 5, "0")


def test_too_few_fillings_are_reported() -> None:
    with pytest.raises(generate.FrameError, match="2 items, but 1500 are wanted"):
        generate.build({"train": [small_frame()]})


def test_command_line_reports_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generate, "load_frames", lambda split: (small_frame(),))
    with pytest.raises(SystemExit) as raised:
        generate.main(["--out", str(tmp_path), "--splits", "train"])
    assert raised.value.code == 1
    assert not list(tmp_path.iterdir())
