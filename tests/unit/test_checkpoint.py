"""Files that several processes write."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from xsalt.checkpoint import one_at_a_time


def test_one_at_a_time_goes_through_and_the_others_say_what_they_wait_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock, order = tmp_path / "new" / ".lock", []

    def second() -> None:
        with one_at_a_time(lock, "the table"):
            order.append("second")

    with one_at_a_time(lock, "the table"):
        thread = threading.Thread(target=second)
        thread.start()
        deadline, said = time.monotonic() + 10, ""
        while "waiting for another process: the table" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.01)
        order.append("first")
    thread.join(10)
    assert "waiting" in said and order == ["first", "second"]


def test_a_lock_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with one_at_a_time(tmp_path / "file" / ".lock", "nothing"):
        pass
    with pytest.raises(ValueError, match="inside"), one_at_a_time(tmp_path / ".lock", "nothing"):
        raise ValueError("inside")
    with one_at_a_time(tmp_path / ".lock", "free again after an error"):
        pass
