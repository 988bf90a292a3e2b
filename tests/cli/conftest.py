"""Scripts are run as a user runs them, with the exit code and the last line of stderr: ``run`` in a process of its own,
``call`` in this one, where that shows the same and takes a tenth of the time."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from xsalt.registry import REGISTRIES

ROOT = Path(__file__).resolve().parents[2]

COMPONENTS = '''
from dataclasses import dataclass, field

from xsalt.registry import AUGMENTERS, CRITERIONS, MODELS, TASKS


@dataclass
class NoKeys:
    pass


@dataclass
class NoiseConfig:
    rate: float = 0.25  # share of the tokens
    words: list[str] = field(default_factory=list)
    """Words that are inserted."""
    table: dict[str, str] = field(default_factory=dict)


@dataclass
class ToyModelConfig:
    name: str = "auto"
    layers: int = 4


@TASKS.register("emotion")
class Emotion:
    """Feelings in a sentence."""

    Config = NoKeys


@AUGMENTERS.register("noise")
class Noise:
    """Random words."""

    Config = NoiseConfig


@AUGMENTERS.register("drop")
class Drop:
    Config = NoiseConfig


@CRITERIONS.register("toy_loss")
class ToyLoss:
    Config = NoKeys


@MODELS.register("toy")
class Toy:
    Config = ToyModelConfig
'''


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("train", "--task", ...)`` runs ``xsalt-train`` in an empty folder."""

    def run_script(script: str, *words: str, path: Path | None = None) -> Result:
        code = f"import sys; from xsalt_cli.{script} import main; sys.exit(main())"
        python_path = os.pathsep.join(str(folder) for folder in (ROOT, path) if folder)
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            cwd=work,
            timeout=120,
            env={**os.environ, "PYTHONPATH": python_path, "PYTHONUTF8": "1"},
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run_script


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The same in this process; what ``--user-dir`` registers and imports is forgotten afterwards."""
    work, modules = tmp_path / "work", set(sys.modules)
    work.mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_entries", registry._entries.copy())

    def call_script(script: str, *words: str) -> Result:
        code = importlib.import_module(f"xsalt_cli.{script}").main(list(words))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield call_script
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def toys(tmp_path: Path) -> list[str]:
    """Flags of a run of components that import nothing, for tests of the command line alone."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "toys.py").write_text(COMPONENTS, encoding="utf-8")
    return ["--user-dir", str(folder), "--task", "emotion", "--model", "toy", "--criterion", "toy_loss"]
