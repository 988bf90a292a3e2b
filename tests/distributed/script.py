"""``xsalt-train`` for ``torchrun`` to start, in which one rank gets a signal, or another configuration.

``SIGNAL=RANK:UPDATE:NUMBER`` sends it after that update, before the first restart only; ``OTHER=RANK:KEY=VALUE`` is
appended to the command line of that rank.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from xsalt.training.state import State
from xsalt_cli.train import main


def signal_after(update: int, number: int) -> None:
    count = State.count

    def counted(self: State, *args: Any) -> None:
        count(self, *args)
        if self.update == update:
            os.kill(os.getpid(), number)

    State.count = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, restarts = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    if "SIGNAL" in os.environ:
        of, update, number = os.environ["SIGNAL"].split(":")
        if of == rank and restarts == "0":
            signal_after(int(update), int(number))
    if "OTHER" in os.environ:
        of, _, key = os.environ["OTHER"].partition(":")
        if of == rank:
            sys.argv.append(key)
    sys.exit(main())
