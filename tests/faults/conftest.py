"""Faults are made at a chosen update of runs in this process, by real signals and real file systems."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.runs import Faulty, command
from tests.tiny import write_nli
from xsalt.registry import CRITERIONS
from xsalt_cli.train import main

Train = Callable[..., int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six updates an epoch."""
    return write_nli(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    """``train(run, "key=value", ..., at={3: act})``: exit code of a run in which ``act`` is called at micro-batch 3."""
    monkeypatch.setattr(CRITERIONS, "_entries", CRITERIONS._entries.copy())
    CRITERIONS.register("faulty")(Faulty)

    def run(folder: Path, *more: str, at: dict[int, Callable[[], None]] | None = None) -> int:
        Faulty.at, Faulty.trained = dict(at or {}), 0
        return main(command(data, folder, "--criterion", "faulty", *more))

    yield run
    Faulty.at, Faulty.bad, Faulty.gradient = {}, set(), False


def send(number: int) -> Callable[[], None]:
    """Sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)
