"""``xsalt-eval``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xsalt.config import Composed, read_yaml
from xsalt.errors import UserError
from xsalt.files import is_folder
from xsalt_cli.front import Script, guard, launch


def _run_configuration(positional: Mapping[str, str]) -> Mapping[str, Any]:
    """The configuration that a run was trained with, or that its checkpoint has; nothing for any other folder.

    Raises:
        UserError: if there is no such folder.
    """
    folder = Path(positional["RUN"])
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder: name a run, a checkpoint or a Hugging Face folder")
    if (folder / "config.yaml").exists():
        return read_yaml(folder / "config.yaml")
    stored = folder / "run.yaml"
    return {**read_yaml(stored), "run": None} if stored.exists() else {}


SCRIPT = Script(
    prog="xsalt-eval",
    about="Evaluate a run, a checkpoint or a fine-tuned Hugging Face folder on a split, in every language found.",
    example="xsalt-eval runs/first eval.split=test",
    positional=("RUN",),
    base=_run_configuration,
)


def _evaluate(composed: Composed) -> int:
    from xsalt.training.run import evaluate

    return evaluate(composed, Path(composed.positional["RUN"]))


def main(argv: Sequence[str] | None = None) -> int:
    return guard(SCRIPT.prog, lambda: launch(SCRIPT, argv, _evaluate), last=argv is None)
