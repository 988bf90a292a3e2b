"""The embedded quick-start NLI set: it can be rebuilt, it is well formed, and shallow cues do not solve it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.quickstart_data import generate
from examples.quickstart_data.compose import (
    DEPENDENT,
    FOLDER,
    NEEDS_TAG,
    compose,
    fill,
    front,
    read_clauses,
    read_families,
)
from examples.quickstart_data.frames import (
    LABELS,
    LANGUAGES,
    SPLIT_LANGUAGES,
    Frame,
    FrameError,
    load_frames,
    sentences,
)

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
    """Split the training rows by frame, so that no sentence is on both sides."""
    names = [frame.name for frame in compose("train")]
    np.random.default_rng(0).shuffle(names)
    fold_of = {name: index % count for index, name in enumerate(names)}
    owner = {text: fold_of[frame.name] for frame in compose("train") for _, text in sentences(frame)}
    return [
        ([row for row in rows if owner[row[1]] != fold], [row for row in rows if owner[row[1]] == fold])
        for fold in range(count)
    ]


def test_generator_reproduces_the_files(tmp_path: Path) -> None:
    generate.main(["--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.tsv" for name in NAMES)
    for name in NAMES:
        assert (tmp_path / f"{name}.tsv").read_bytes() == (DATA / f"{name}.tsv").read_bytes(), name


def test_another_seed_gives_other_rows() -> None:
    frames = {"train": compose("train")}
    assert generate.build(frames, seed=2) != generate.build(frames, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_file_is_balanced_and_clean(files: dict[str, list[Row]], name: str) -> None:
    rows = files[name]
    counts = Counter(row[2] for row in rows)
    assert set(counts) == set(LABELS)
    assert len(set(counts.values())) == 1
    assert len(rows) >= (5000 if name == "train-en" else 300)
    assert len({row[:2] for row in rows}) == len(rows)
    assert b"\r" not in (DATA / f"{name}.tsv").read_bytes()
    assert all(not re.search(r"[{}]|  |^\s|\s$", text) for row in rows for text in row)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", [0, 1])
def test_each_sentence_has_every_label_once(files: dict[str, list[Row]], name: str, field: int) -> None:
    by_label = [Counter(row[field] for row in files[name] if row[2] == label) for label in LABELS]
    assert by_label[0] == by_label[1] == by_label[2]
    assert set(by_label[0].values()) == {1}


@pytest.mark.parametrize("split", ["dev", "test"])
def test_languages_are_row_parallel(files: dict[str, list[Row]], split: str) -> None:
    """Row n is, in every language, the same premise and hypothesis of the same frame."""
    place = {}
    for frame in compose(split):
        for number, question in enumerate(frame.questions):
            for kind, texts in (("premise", question.premises), ("hypothesis", question.hypotheses)):
                for language, pair in texts.items():
                    place.update({(language, text): (frame.name, number, kind, v) for v, text in enumerate(pair)})
    for index in range(len(files[f"{split}-en"])):
        rows = {language: files[f"{split}-{language}"][index] for language in LANGUAGES}
        origins = {(place[language, row[0]], place[language, row[1]], row[2]) for language, row in rows.items()}
        assert len(origins) == 1


def test_no_sentence_is_shared_between_splits(files: dict[str, list[Row]]) -> None:
    texts: dict[str, dict[str, set[str]]] = {}
    for name, rows in files.items():
        split, language = name.split("-")
        texts.setdefault(language, {})[split] = {text for row in rows for text in row[:2]}
    for splits in texts.values():
        kinds = sorted(splits)
        for i, one in enumerate(kinds):
            for other in kinds[i + 1 :]:
                assert splits[one].isdisjoint(splits[other])


def near(texts: Sequence[str], known: Sequence[str]) -> list[tuple[str, str]]:
    """Texts that share at least half of their 4-grams of words with a known one."""

    def grams(text: str) -> set[tuple[str, ...]]:
        tokens = words(text)
        return set(zip(tokens, tokens[1:], tokens[2:], tokens[3:]))

    owners: dict[tuple[str, ...], set[str]] = {}
    for text in known:
        for gram in grams(text):
            owners.setdefault(gram, set()).add(text)
    found = []
    for text in texts:
        shared = Counter(other for gram in grams(text) for other in owners.get(gram, ()))
        if shared and max(shared.values()) >= 0.5 * len(grams(text)) and len(grams(text)) >= 3:
            found.append((text, shared.most_common(1)[0][0]))
    return found


def test_no_clause_of_dev_or_test_is_nearly_one_of_training() -> None:
    """Held-out frames must not be rewordings of training frames."""
    clauses = {
        split: [
            text.replace("{x}", "")
            for clause in read_clauses(FOLDER / f"clauses_{split}.txt", SPLIT_LANGUAGES[split])
            for text in clause.texts["en"]
        ]
        for split in SPLIT_LANGUAGES
    }
    assert not near([*clauses["dev"], *clauses["test"]], clauses["train"])
    assert not near(clauses["test"], clauses["dev"])


def test_no_situation_of_dev_or_test_is_nearly_one_of_training() -> None:
    texts = {
        split: [text for frame in load_frames(split) for language, text in sentences(frame) if language == "en"]
        for split in SPLIT_LANGUAGES
    }
    assert not near([*texts["dev"], *texts["test"]], texts["train"])


def test_situations_are_balanced_and_shallow_cues_do_not_solve_them() -> None:
    files = {
        name: [(row.premise, row.hypothesis, row.label) for row in rows]
        for name, rows in generate.build({split: load_frames(split) for split in SPLIT_LANGUAGES}).items()
    }
    train, tests = files["train-en"], [files["dev-en"], files["test-en"]]
    assert bag_accuracy(train, tests, field=1) == pytest.approx([1 / 3, 1 / 3])
    assert bag_accuracy(train, tests, field=0) == pytest.approx([1 / 3, 1 / 3])
    weights = softmax_fit(products(overlap_features(train)), targets(train), l2=1e-5, steps=400)
    scores = [accuracy(products(overlap_features(rows)), targets(rows), weights) for rows in tests]
    print("situations: overlap-only dev, test:", scores)
    assert max(scores) < 0.5


def test_a_frame_asks_only_what_is_independent() -> None:
    """Families that say something about one another never meet in a frame, and tags are respected."""
    families = {value["en"][0]: family for family in read_families(FOLDER / "values.txt") for value in family.values}
    for split in SPLIT_LANGUAGES:
        clauses = {
            clause.name: clause for clause in read_clauses(FOLDER / f"clauses_{split}.txt", SPLIT_LANGUAGES[split])
        }
        for frame in compose(split):
            clause = clauses[frame.name]
            phrase_of = {
                put(text, phrase): phrase for text in clause.texts["en"] for phrase in families for put in (fill, front)
            }
            asked = [families[phrase_of[question.hypotheses["en"][0]]].name for question in frame.questions]
            assert len(set(asked)) == len(asked)
            assert not [pair for pair in combinations(asked, 2) if frozenset(pair) in DEPENDENT]
            assert {name for name in asked if name in NEEDS_TAG} <= clause.tags


def test_some_premise_phrases_of_test_are_new() -> None:
    """The last premise phrase of each value is kept out of training."""
    last = {value["en"][-1] for family in read_families(FOLDER / "values.txt") for value in family.values}
    share = {}
    for split in SPLIT_LANGUAGES:
        premises = [text for frame in compose(split) for q in frame.questions for text in q.premises["en"]]
        share[split] = np.mean([any(phrase in premise for phrase in last) for premise in premises])
    print("share of premises with a phrase that training lacks:", share)
    assert share["train"] == 0
    assert 0.15 < share["test"] < 0.25


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("values.txt", "family season knowledge", "family season seasonal", "values.txt:.*unknown relation 'seasonal'"),
        ("values.txt", "in summer | in July", "in summer | in summer", "values.txt:.*five different phrases"),
        ("clauses_test.txt", "duration", "length", "clauses_test.txt:.*unknown tag in"),
        ("clauses_test.txt", "{x}. |", ". |", "clauses_test.txt:.*needs {x} once"),
        ("clauses_test.txt", "\nen | ", "\nxx | ", "clauses_test.txt:.*expected 'LL"),
        ("clauses_test.txt", "\nzh | ", "\n# ", "clauses_test.txt: .* is not in all of"),
    ],
)
def test_a_broken_clause_or_value_is_named(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    for name in ("values.txt", "clauses_test.txt"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert name != file or old in text
        (tmp_path / name).write_text(text.replace(old, new, 1) if name == file else text, encoding="utf-8")
    with pytest.raises(FrameError, match=message):
        compose("test", tmp_path)


def test_hypothesis_alone_is_at_chance(files: dict[str, list[Row]]) -> None:
    scores = bag_accuracy(files["train-en"], [files["dev-en"], files["test-en"]], field=1)
    print("hypothesis-only dev, test:", scores)
    assert max(scores) < 0.5


def test_premise_alone_is_at_chance(files: dict[str, list[Row]]) -> None:
    scores = bag_accuracy(files["train-en"], [files["dev-en"], files["test-en"]], field=0)
    print("premise-only dev, test:", scores)
    assert max(scores) < 0.4


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


FRAME = """\
# a comment

frame small
question time
en | Tom is at work. | Tom has just come to work and sits at his desk. | Tom is at home. | Tom came home an hour ago.
question lexical
en | Tom wears a shirt. | The shirt that Tom has on is blue. | Tom wears a coat. | Tom has buttoned up his coat.
"""


def load(tmp_path: Path, text: str, split: str = "train") -> list[Frame]:
    (tmp_path / f"{split}_1.txt").write_text(text, encoding="utf-8")
    return list(load_frames(split, tmp_path))


def test_a_good_frame_gives_each_hypothesis_every_label(tmp_path: Path) -> None:
    rows = generate.build({"train": load(tmp_path, FRAME)})["train-en"]
    assert len(rows) == 12
    work = {row.label: row.premise for row in rows if row.hypothesis == "Tom is at work."}
    assert work["entailment"] == "Tom has just come to work and sits at his desk."
    assert work["contradiction"] == "Tom came home an hour ago."
    assert work["neutral"] in ("The shirt that Tom has on is blue.", "Tom has buttoned up his coat.")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("question time", "question colour", "train_1.txt:4: unknown relation 'colour'"),
        ("en | Tom is", "de | Tom is", "train_1.txt:5: language 'de' is unknown here"),
        ("en | Tom wears", "en | Tom | wears", "train_1.txt:7: 5 sentences, expected 4"),
        ("en | Tom is", "en |  Tom is", "train_1.txt:5: empty, or white space"),
        ("wears a shirt.", "wears  a shirt.", "train_1.txt:7: empty, or white space"),
        ("Tom wears a shirt.", "Том носит рубашку.", "train_1.txt:7: not written in latin script"),
        ("frame small", "frame Small Frame", "train_1.txt:3: bad frame name"),
        ("frame small\n", "", "train_1.txt:3: a question before the first frame"),
        ("question time\n", "", "train_1.txt:4: a sentence before the first question"),
        ("question lexical\nen", "question lexical\n# en", "small: question 2 has no text for en"),
        ("Tom wears a shirt.", "Tom is at work.", "train: small: 'Tom is at work.' .en. is also in train: small"),
    ],
)
def test_a_broken_frame_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FRAME
    with pytest.raises(FrameError, match=message):
        generate.build({"train": load(tmp_path, FRAME.replace(old, new, 1))})


def test_one_question_is_not_a_frame(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="small: 1 questions, expected at least 2"):
        load(tmp_path, FRAME[: FRAME.index("question lexical")])


def test_dev_needs_every_language(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="small: question 1 has no text for ar, bg"):
        load(tmp_path, FRAME, "dev")


def test_names_are_unique_over_splits(tmp_path: Path) -> None:
    frames = load(tmp_path, FRAME)
    with pytest.raises(FrameError, match="dev: small: the name is used twice, also in train"):
        generate.build({"train": frames, "dev": frames})


def test_command_line_reports_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(split: str) -> None:
        raise FrameError("train_1.txt:1: bad")

    monkeypatch.setitem(generate.SETS, "composed", broken)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as raised:
        generate.main(["--out", str(tmp_path / "out"), "--splits", "train"])
    assert raised.value.code == 1
    assert not (tmp_path / "out").exists()
