"""A data set is tokenised once; its cache survives damage and several writers; batches hold what they should."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from xsalt.batch import IGNORE
from xsalt.data.dataset import Dataset, Example, tokenise
from xsalt.errors import UserError
from xsalt.text.tokenizer import Tokenizer, train_tokenizer

WORDS = [
    "the",
    "small",
    "cat",
    "sleeps",
    "on",
    "a",
    "red",
    "sofa",
    "while",
    "big",
    "dogs",
    "run",
    "along",
    "green",
    "rivers",
    "and",
    "old",
    "trees",
]
EXAMPLES = {
    "en": [
        Example(" ".join(WORDS[i % 9 :][: 3 + i % 7]), " ".join(WORDS[i % 5 :][: 2 + i % 4]), i % 3, f"e{i}")
        for i in range(50)
    ],
    "de": [Example("sofa cat the", "red dogs", 2, "d0"), Example("trees", "rivers old", IGNORE, "d1")],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(WORDS[i % 16 :] + WORDS[: i % 16]) for i in range(100)], 120, seed=1)


def make(tokenizer: Tokenizer, cache: Path, max_length: int = 24) -> Dataset:
    return tokenise(EXAMPLES, tokenizer, max_length, ("fr", "en", "de"), cache)


def assert_equal(a: Dataset, b: Dataset) -> None:
    for name in ("ids", "offsets", "type", "special", "label", "language"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert (a.uids, a.languages, a.fingerprint) == (b.uids, b.languages, b.fingerprint)


def test_a_data_set_holds_what_the_tokenizer_gives(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dataset = make(tokenizer, tmp_path)
    flat = EXAMPLES["en"] + EXAMPLES["de"]
    encoded = tokenizer.encode([e.first for e in flat], [e.second or "" for e in flat], 24)
    assert np.array_equal(dataset.ids, encoded.ids_N)
    assert np.array_equal(dataset.lengths, np.diff(encoded.offsets))
    assert dataset.label.tolist() == [e.label for e in flat]
    assert dataset.uids == [e.uid for e in flat]
    assert dataset.language.tolist() == [1] * 50 + [2] * 2
    assert len(dataset) == 52
    assert isinstance(dataset.ids, np.memmap)


def test_the_second_time_nothing_is_tokenised(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tokenizer, tmp_path)
    monkeypatch.setattr(Tokenizer, "encode", None)
    assert_equal(make(tokenizer, tmp_path), first)


def test_another_length_tokenizer_or_text_is_another_entry(tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = train_tokenizer(["dogs run " * 5, "cats sleep " * 5] * 20, 60, seed=1)
    sets = [make(tokenizer, tmp_path), make(tokenizer, tmp_path, 12), make(other, tmp_path)]
    changed = {"en": [Example(e.first, (e.second or "") + " x", e.label, e.uid) for e in EXAMPLES["en"]]}
    sets.append(tokenise(changed, tokenizer, 24, ("en",), tmp_path))
    moved = {"en": [Example(f"{e.first} {e.second}", None, e.label, e.uid) for e in EXAMPLES["en"]]}
    sets.append(tokenise(moved, tokenizer, 24, ("en",), tmp_path))
    assert len({dataset.fingerprint for dataset in sets}) == len(sets)


def test_labels_are_not_cached(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = make(tokenizer, tmp_path)
    other = {language: [Example(e.first, e.second, 0, e.uid) for e in rows] for language, rows in EXAMPLES.items()}
    again = tokenise(other, tokenizer, 24, ("fr", "en", "de"), tmp_path)
    assert again.fingerprint == first.fingerprint
    assert set(again.label.tolist()) == {0}


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "manifest", "no file"])
def test_a_damaged_cache_is_made_again(tokenizer: Tokenizer, tmp_path: Path, damage: str) -> None:
    first = make(tokenizer, tmp_path)
    ids = first.ids.copy()
    [folder] = (tmp_path / "tokenised").iterdir()
    file = folder / "ids_N.npy"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{}")
    elif damage == "no file":
        (folder / "manifest.json").unlink()
    else:
        file.unlink()  # a new file: the old one is still mapped
        file.write_bytes(content[:-8] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    assert np.array_equal(make(tokenizer, tmp_path).ids, ids)
    assert [f.name for f in (tmp_path / "tokenised").iterdir()] == [folder.name]
    assert np.array_equal(np.load(file), ids)


def _write(folder: str, tokenizer_folder: str, out: str) -> None:
    from xsalt.text.tokenizer import load_tokenizer

    dataset = make(load_tokenizer(Path(tokenizer_folder)), Path(folder))
    np.save(out, dataset.ids)


def test_processes_that_write_at_once_all_get_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    context = multiprocessing.get_context("spawn")
    arguments = [(str(tmp_path / "cache"), str(tmp_path / "tokenizer"), str(tmp_path / f"{i}.npy")) for i in range(3)]
    processes = [context.Process(target=_write, args=a) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert len(list((tmp_path / "cache" / "tokenised").iterdir())) == 1
    assert all(np.array_equal(np.load(tmp_path / f"{i}.npy"), np.load(tmp_path / "0.npy")) for i in range(3))


def test_a_batch_gathers_its_examples_in_the_order_asked_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dataset = make(tokenizer, tmp_path)
    indices = np.array([51, 3, 0, 50])
    batch = dataset.batch(indices, seed=7, epoch=2)
    at = [slice(int(dataset.offsets[i]), int(dataset.offsets[i + 1])) for i in indices]
    assert batch.ids_T.tolist() == np.concatenate([dataset.ids[s] for s in at]).tolist()
    assert batch.corpus_T.tolist() == [t for s in at for t in range(s.start, s.stop)]
    assert batch.special_T.tolist() == np.concatenate([dataset.special[s] for s in at]).tolist()
    assert batch.layout.lengths_B.tolist() == dataset.lengths[indices].tolist()
    assert batch.uid_B.tolist() == indices.tolist()
    assert batch.label_B.tolist() == [IGNORE, 0, 0, 2]
    assert batch.language_T.tolist() == np.repeat([2, 1, 1, 2], dataset.lengths[indices]).tolist()
    assert batch.view_B.tolist() == [0] * 4
    assert (batch.languages, batch.seed, batch.epoch) == (("fr", "en", "de"), 7, 2)
    assert batch.source_ids_T is batch.ids_T
    for name in ("ids_T", "type_T", "uid_B", "view_B", "label_B", "language_T", "corpus_T"):
        assert getattr(batch, name).dtype == torch.int64, name
    assert batch.special_T.dtype == torch.bool


def test_single_sentences_and_pairs_may_be_mixed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    mixed = [Example("the cat", "sleeps", 0, "0"), Example("red sofa", None, 1, "1"), Example("a", "dogs run", 2, "2")]
    dataset = tokenise({"en": mixed}, tokenizer, 24, ("en",), tmp_path)
    for i, example in enumerate(mixed):
        alone = tokenizer.encode([example.first], None if example.second is None else [example.second], 24)
        assert dataset.ids[dataset.offsets[i] : dataset.offsets[i + 1]].tolist() == alone.ids_N.tolist()


def test_a_cache_that_cannot_be_written_is_a_users_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the cache can't be written .*: set XSALT_CACHE"):
        make(tokenizer, tmp_path / "file")


def test_a_data_set_may_be_empty(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for _ in range(2):
        dataset = tokenise({"en": []}, tokenizer, 24, ("en",), tmp_path)
        assert len(dataset) == 0
        assert dataset.lengths.tolist() == []
