"""Checkpoints are written beside training, one at a time, from what was there when they were asked for."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from xsalt.errors import UserError
from xsalt.nn.embedding import ActiveRows
from xsalt.training.saving import Writer, written


def test_work_is_done_on_another_thread_one_piece_at_a_time_and_in_order() -> None:
    writer, done, go = Writer(background=True), [], threading.Event()

    def first() -> None:
        go.wait(10)
        done.append(("first", threading.current_thread() is threading.main_thread()))

    writer.submit(first)
    assert done == [], "submit returned while the work waited"
    threading.Timer(0.05, go.set).start()
    writer.submit(lambda: done.append(("second", threading.current_thread() is threading.main_thread())))
    assert done[0] == ("first", False), "the second piece waits for the first"
    writer.wait()
    assert done == [("first", False), ("second", False)]


def test_in_the_foreground_it_is_done_at_once() -> None:
    writer, done = Writer(background=False), []
    writer.submit(lambda: done.append(threading.current_thread() is threading.main_thread()))
    assert done == [True]


def test_an_error_reaches_who_asks_next_and_once() -> None:
    writer = Writer(background=True)

    def fail() -> None:
        raise UserError("no room")

    writer.submit(fail)
    with pytest.raises(UserError, match="no room"):
        writer.wait()
    writer.check()
    writer.submit(fail)
    with pytest.raises(UserError, match="no room"):
        writer.submit(lambda: None)


def test_what_the_system_refuses_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"x\.safetensors: No space left on device"), written(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "x.safetensors")
    with pytest.raises(UserError, match="the run folder is gone"), written(tmp_path / "gone"):
        raise OSError(errno.ENOENT, "No such file or directory", "x.safetensors")


@pytest.mark.parametrize("active", [True, False])
def test_a_snapshot_of_the_word_table_stays_as_it_was(active: bool) -> None:
    table = torch.arange(40.0).view(10, 4)
    word = ActiveRows(table.clone())
    if active:
        word.prepare(np.array([2, 5, 7]))
    word.decay_untouched(0.5)
    expected, snapshot = word.export().clone(), word.snapshot(rows=3)
    with torch.no_grad():
        word.weight.add_(1.0)
    word.decay_untouched(0.5)
    assert torch.equal(torch.cat(list(snapshot())), expected)
    assert not torch.equal(word.export(), expected)
