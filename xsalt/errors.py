"""The one error that a user can cause and repair."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong. The message is one line: what, where (``file:line``), what instead.

    Command-line programs print it as ``PROGRAM: error: MESSAGE`` and exit with code 2. What a damaged file puts into it
    is kept to that line: line breaks become spaces, and of a very long message the middle is left out.
    """

    def __str__(self) -> str:
        line = " ".join(super().__str__().splitlines())
        return line if len(line) <= 2000 else f"{line[:1200]} [...] {line[-600:]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'xnli'?`` and a space for the nearest of the known words, or nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
