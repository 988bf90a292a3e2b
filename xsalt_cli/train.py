"""``xsalt-train``."""

from __future__ import annotations

from collections.abc import Sequence

from xsalt.config import Composed
from xsalt_cli.front import Script, guard, launch

SCRIPT = Script(
    prog="xsalt-train",
    about="Train a multilingual encoder on a task in one language; evaluate it in every language.",
    example="xsalt-train --task xnli --augmenter codeswitch run=runs/first",
)


def _train(composed: Composed) -> int | None:
    from xsalt.training.run import train  # late: --help and --cfg must not wait for torch

    return train(composed)


def main(argv: Sequence[str] | None = None) -> int:
    return guard(SCRIPT.prog, lambda: launch(SCRIPT, argv, _train), last=argv is None)
