"""A substitution table is the same bytes however many ranks made it, and whichever of them was killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import worker
from tests.distributed.torchrun import start, torchrun
from tests.tiny import LISTS, TINY, WORDS, write_nli
from xsalt.distill import build
from xsalt_cli import augment

FILES = ("ids.npy", "probability.npy", "manifest.json", "stats.json")


def content(folder: Path) -> dict[str, Any]:
    """All that is in a table's folder; of the statistics all but the speed, and the seal over it."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(found) == set(FILES)
    found["stats.json"] = json.loads(found["stats.json"])
    assert found["stats.json"].pop("tokens_per_s") >= 0
    assert found["stats.json"].pop("sha256")
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables that one process makes with two threads."""
    folder, threads, kept = tmp_path_factory.mktemp("alone"), torch.get_num_threads(), (build.SPAN, build.BLOCK)
    torch.set_num_threads(2)
    worker.tables(folder, 32)
    torch.set_num_threads(threads)
    build.SPAN, build.BLOCK = kept
    return folder


@pytest.mark.parametrize("ranks", [2, 4])
def test_tables_of_several_ranks_are_those_of_one_process(ranks: int, alone: Path, tmp_path: Path) -> None:
    torchrun(ranks, "tables", tmp_path, ranks - 1)
    for name in worker.SETTINGS:
        assert content(tmp_path / name) == content(alone / name)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", *worker.SETTINGS}  # nor locks nor parts are left


def test_of_a_killed_rank_only_the_unfinished_spans_are_scored_again(alone: Path, tmp_path: Path) -> None:
    starts: list[list[str]] = []
    scored: list[tuple[str, str]] = []
    with start(2, "halting_table", tmp_path, flags=("--max-restarts=1",)) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            kind, *words = line.split()
            if kind == "start":
                starts.append(words)
                continue
            scored.append((words[0], words[1]))
            if len(starts) == 2 and [rank for _, rank in scored].count("1") == 2:
                (pid,) = (int(words[1]) for words in starts if words[0] == "1")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=240) == 0, process.stderr.read()
    assert len(starts) == 4
    there = set(starts[2][2:])
    assert 2 <= len(there) < 9
    assert len(scored) <= 9  # what a rank wrote is never scored again
    again = {span for span, _ in scored[-(9 - len(there)) :]}
    assert sorted([*again, *there]) == [str(span) for span in range(9)]
    assert content(tmp_path / "lens") == content(alone / "lens")


def test_augment_reports_the_same_of_three_ranks_and_says_it_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_nli(tmp_path / "data", train=32, dev=9)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{WORDS['en'][i % 10]} {WORDS['en'][i * i % 7]} runs\n" for i in range(3 * build.SPAN)))
    pairs = zip(WORDS["en"], WORDS["fr"], strict=True)
    (tmp_path / "en-fr.txt").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    keys = ["--task", "xnli", f"data.root={data}", f"corpus={corpus}", "distill.layer=0", *TINY, *LISTS]
    keys += [f"lexicon={tmp_path / 'en-fr.txt'}", "sample=2"]
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "one"))
    assert augment.main([*keys, f"out={tmp_path / 'table-1'}"]) == 0
    shown = capsys.readouterr().out
    out, err = torchrun(3, "script", "augment", *keys, f"out={tmp_path / 'table-3'}", XSALT_CACHE=str(tmp_path / "few"))
    assert content(tmp_path / "table-3") == content(tmp_path / "table-1")
    assert out == shown and "P@1" in shown
    assert err.count("substitutions: scored") == 1 and err.count("training a tokenizer") == 1
    assert len(list((tmp_path / "few" / "tokenised").iterdir())) == 1


def test_ranks_that_do_not_share_the_cache_are_told_once_and_before_anything_else(tmp_path: Path) -> None:
    data = write_nli(tmp_path / "data", train=32, dev=9)
    keys = ["--task", "xnli", f"data.root={data}", *TINY, *LISTS]
    process = start(2, "script", "augment", *keys, XSALT_CACHE=str(tmp_path / "cache-{rank}"))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    ours = [line for line in err.splitlines() if line.startswith("xsalt-augment: error: ")]
    assert len(ours) == 1 and "rank 1 doesn't see what rank 0 writes in it: set XSALT_CACHE to one folder" in ours[0]
    assert "Traceback" not in err[: err.index(ours[0])] and "exitcode: 2" in err
    assert "Traceback" not in err.replace("Traceback", "", 1)  # but that of torchrun itself
