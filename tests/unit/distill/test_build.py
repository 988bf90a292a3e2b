"""Tables are bit by bit alike however they are built: in one go, by shards, after a kill, beside another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.distill import tiny
from xsalt.config_distill import DistillConfig
from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import SubstitutionTable, new_table
from xsalt.distill import build, parts
from xsalt.distill.build import Builder, ids_in
from xsalt.distill.parts import Parts
from xsalt.distill.scoring import Candidates, Scorer, best_of
from xsalt.distill.shortlist import ShortlistScorer
from xsalt.distill.table import build_table
from xsalt.errors import UserError
from xsalt.nn.inference import inference
from xsalt.text.tokenizer import Tokenizer

FILES = ("ids.npy", "probability.npy", "manifest.json")
TABLE = ("fr", "it", "en")
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def small_spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(build, "SPAN", 16)
    monkeypatch.setattr(build, "BLOCK", 4)
    yield
    torch.set_num_threads(threads)


def make(folder: Path, tokenizer: Tokenizer, dataset: Dataset, method: str, in_flight: int, **keys: Any) -> list[bytes]:
    model = tiny.make_model(tokenizer, method == "mlm", width=64)
    config = DistillConfig(temperature=0.1, **keys)
    vocabularies = tiny.make_vocabularies(tokenizer)
    build_table(
        model, tokenizer, dataset, TABLE, vocabularies, config, method, folder, "fingerprint", ("en",), in_flight
    )
    return [(folder / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("keys", [{}, {"shortlist": 0}, {"k": 3}, {"whole_words": True}], ids=str)
@pytest.mark.parametrize("method", ["lens", "mlm"])
def test_threads_and_blocks_in_memory_change_no_bit(
    method: str, keys: dict[str, Any], tokenizer: Tokenizer, dataset: Dataset, tmp_path: Path
) -> None:
    tables = []
    for threads, in_flight in ((1, 32), (2, 32), (4, 1), (1, 3)):
        torch.set_num_threads(threads)
        tables.append(make(tmp_path / f"{threads}-{in_flight}", tokenizer, dataset, method, in_flight, **keys))
    assert tables[0] == tables[1] == tables[2] == tables[3]


def test_shards_in_any_order_make_the_same_table(tokenizer: Tokenizer, dataset: Dataset, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", tokenizer, dataset, "lens", 32)
    model = tiny.make_model(tokenizer, width=64)
    (tmp_path / "parts").mkdir()
    shared = Parts(tmp_path / "parts", "fingerprint", (3, 1))
    for first, last in ((3, 5), (0, 1), (1, 3)):
        with inference(model):
            scorer = Scorer(
                model,
                tokenizer,
                tiny.make_vocabularies(tokenizer),
                TABLE,
                DistillConfig(temperature=0.1),
                "lens",
                ("en",),
            )
            builder = Builder(ShortlistScorer(scorer, tokenizer, ids_in(dataset)), dataset, shared, 2)
            assert builder.spans == 5
            builder.build(range(first, last))
    with new_table(tmp_path / "merged", len(dataset.ids), TABLE, 1, "fingerprint", ("en",)) as table:
        builder.merge(table, scorer.words_V, dict.fromkeys(TABLE, 1))
    assert [(tmp_path / "merged" / name).read_bytes() for name in FILES] == whole


def start(folder: Path, examples: int, span: int, seconds: float, k: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, tiny.__file__, *map(str, (folder, examples, span, seconds, k))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How many spans it scored, and what it said."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.count("span"), err


def files(folder: Path) -> list[bytes]:
    return [(folder / "table" / name).read_bytes() for name in FILES]


@pytest.mark.slow
def test_a_killed_build_scores_only_what_is_missing_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    scored, _ = finish(start(tmp_path / "whole", 70, 8, 0))
    assert scored == 9
    process = start(tmp_path / "killed", 70, 8, 0.3)
    place = tmp_path / "killed" / ".table-parts"
    deadline = time.monotonic() + 60
    while len(list(place.glob("*.part"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(list(place.glob("*.part")))
    assert 3 <= done < 9 and not (tmp_path / "killed" / "table").exists()
    (place / "0.part").write_bytes((place / "0.part").read_bytes()[:-40])  # cut by the file system
    (place / ".table-half").mkdir()
    scored, _ = finish(start(tmp_path / "killed", 70, 8, 0))
    assert scored == 9 - done + 1
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {"table", "cache"}


@pytest.mark.slow
def test_of_two_processes_with_one_table_the_second_waits_and_uses_it(tmp_path: Path) -> None:
    both = [start(tmp_path / "both", 70, 8, 0.1) for _ in range(2)]
    results = [finish(process) for process in both]
    assert sorted(scored for scored, _ in results) == [0, 9]
    assert sum("another process is building" in said for _, said in results) <= 1
    finish(start(tmp_path / "alone", 70, 8, 0))
    assert files(tmp_path / "both") == files(tmp_path / "alone")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    grew = []
    for examples in (1500, 15000):
        out, err = start(tmp_path / str(examples), examples, 512, 0, 16).communicate(timeout=300)
        assert "grew" in out, err
        grew.append(int(out.split()[-1]))
    table = sum((tmp_path / "15000" / "table" / name).stat().st_size for name in FILES)
    assert table > 40 << 20
    assert (grew[1] - grew[0]) << 10 < 12 << 20


def test_parts_of_another_table_and_damaged_parts_are_not_used(tmp_path: Path) -> None:
    kept = Parts(tmp_path, "a", (2, 1))
    ids = np.arange(10, dtype=np.int32).reshape(5, 2, 1)
    probability = (ids / 10).astype(np.float16)
    kept.write(3, ids, probability)
    read = kept.read(3, 5)
    assert read is not None
    np.testing.assert_array_equal(read[0], ids)
    np.testing.assert_array_equal(read[1], probability)
    assert kept.read(3, 4) is None and kept.read(2, 5) is None
    assert Parts(tmp_path, "b", (2, 1)).read(3, 5) is None
    assert Parts(tmp_path, "a", (1, 2)).read(3, 5) is None
    (tmp_path / "2.part").write_bytes((tmp_path / "3.part").read_bytes())
    assert kept.read(2, 5) is None
    raw = bytearray((tmp_path / "3.part").read_bytes())
    for at in range(len(raw)):
        raw[at] ^= 4
        (tmp_path / "3.part").write_bytes(raw)
        assert kept.read(3, 5) is None
        raw[at] ^= 4


def test_parts_left_by_a_build_with_other_weights_are_scored_again(
    tokenizer: Tokenizer, dataset: Dataset, tmp_path: Path
) -> None:
    whole = make(tmp_path / "whole", tokenizer, dataset, "lens", 32)
    (tmp_path / ".again-parts").mkdir()
    other = Parts(tmp_path / ".again-parts", "other", (3, 1))
    wrong = np.zeros((int(dataset.offsets[16]), 3, 1), dtype=np.int32)
    other.write(0, wrong, wrong.astype(np.float16))
    assert make(tmp_path / "again", tokenizer, dataset, "lens", 32) == whole


def test_without_locks_each_process_has_a_place_of_its_own(
    tokenizer: Tokenizer, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    whole = make(tmp_path / "whole", tokenizer, dataset, "lens", 32)
    monkeypatch.setattr(parts.fcntl, "flock", no_locks)
    assert make(tmp_path / "again", tokenizer, dataset, "lens", 32) == whole
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".again-own")} == set()


def test_a_full_disk_is_one_error_line_and_loses_nothing(
    tokenizer: Tokenizer, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = Parts.write

    def limited(self: Parts, span: int, *arrays: Any) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(span)
        write(self, span, *arrays)

    monkeypatch.setattr(Parts, "write", limited)
    with pytest.raises(UserError, match=r"can't be written \(No space left on device\): make room"):
        make(tmp_path / "table", tokenizer, dataset, "lens", 32)
    assert not (tmp_path / "table").exists()
    monkeypatch.setattr(Parts, "write", lambda self, span, *arrays: (written.append(span), write(self, span, *arrays)))
    again = make(tmp_path / "table", tokenizer, dataset, "lens", 32)
    assert written == [0, 1, 2, 3, 4]
    assert again == make(tmp_path / "whole", tokenizer, dataset, "lens", 32)


@pytest.fixture
def open_table(tokenizer: Tokenizer, dataset: Dataset, tmp_path: Path) -> Callable[..., SubstitutionTable]:
    def call(method: str = "lens", **keys: Any) -> SubstitutionTable:
        folder = tmp_path / f"{method}{len(list(tmp_path.iterdir()))}"
        make(folder, tokenizer, dataset, method, 32, **keys)
        return SubstitutionTable.open(folder)

    return call


@pytest.mark.parametrize("keys", [{"shortlist": 0}, {"shortlist": 100}], ids=str)
@pytest.mark.parametrize("method", ["lens", "mlm"])
def test_synonyms_are_the_best_others_with_their_share_of_the_whole_softmax(
    method: str, keys: dict[str, Any], open_table: Any, tokenizer: Tokenizer, dataset: Dataset
) -> None:
    table = open_table(method, k=8, **keys)
    assert table.languages == TABLE and table.source == ("en",)
    english = tiny.make_vocabularies(tokenizer).ids["en"]
    words = np.isin(dataset.ids, english)
    own = dataset.ids[words]
    ids, probability = table.ids_NLK[words, 2], table.probability_NLK[words, 2].astype(float)
    tree, capital = (tiny.PIECES.index(piece) for piece in ("▁tree", "▁Tree"))
    for token, row in zip(own.tolist(), ids.tolist(), strict=True):
        others = set(english.tolist()) - ({tree, capital} if token == tree else {token})
        assert set(row) - {-1} == others  # 9 pieces: of 8 places the two spellings of tree leave one empty
    assert (np.diff(probability, axis=1) <= 0).all()
    total = probability.sum(1)
    assert (total < 0.99).all() and (total > 0).all()  # the token itself keeps its share


@pytest.mark.parametrize("method", ["lens", "mlm"])
def test_whole_words_leaves_pieces_of_longer_words_alone(
    method: str, open_table: Any, tokenizer: Tokenizer, dataset: Dataset
) -> None:
    table, loose = open_table(method, whole_words=True), open_table(method)
    pieces = np.array(tokenizer.pieces())[dataset.ids]
    before_piece = np.append(pieces[1:] == "ing", False)
    longer = before_piece | (pieces == "ing")
    assert (table.ids_NLK[longer] == -1).all() and (loose.ids_NLK[longer, 0] >= 0).all()
    np.testing.assert_array_equal(table.ids_NLK[~longer], loose.ids_NLK[~longer])


def test_a_substitution_that_differs_in_case_alone_means_the_token_itself(tokenizer: Tokenizer) -> None:
    model = tiny.make_model(tokenizer)
    scorer = Scorer(model, tokenizer, tiny.make_vocabularies(tokenizer), TABLE, DistillConfig(), "lens")
    tree, capital, cat = (tiny.PIECES.index(piece) for piece in ("▁tree", "▁Tree", "▁cat"))
    best = np.array([[[capital, -1]], [[tree, cat]], [[-1, capital]]], dtype=np.int32)
    own = np.array([tree, tree, cat], dtype=np.int32)
    assert scorer.same_as_own(best, own).tolist() == [[[tree, -1]], [[tree, cat]], [[-1, capital]]]


@pytest.mark.parametrize(("positions", "candidates", "width"), [(1, 40_000, 32), (3, 8000, 384), (700, 4003, 384)])
def test_scores_have_the_same_bits_for_any_number_of_threads(positions: int, candidates: int, width: int) -> None:
    rng = torch.Generator().manual_seed(0)
    rows, query = (torch.randn(n, width, generator=rng) for n in (candidates, positions))
    number = torch.arange(candidates)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        offered = Candidates(number, number, rows, torch.zeros(candidates), synonyms=True)
        results.append(best_of(query / 5, number[:positions], offered, 4))
    for ids, probability in results[1:]:
        assert torch.equal(ids, results[0][0])
        assert torch.equal(probability, results[0][1])
    expected = (query.double() / 5 @ rows.double().T).softmax(1)
    expected[torch.arange(positions), torch.arange(positions)] = 0
    torch.testing.assert_close(results[0][1].double(), expected.topk(4, dim=1).values, rtol=1e-4, atol=1e-9)
