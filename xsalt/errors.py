"""The one error that a user can cause and repair."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong. The message is one line: what, where (``file:line``), what instead.

    Command-line programs print it as ``PROGRAM: error: MESSAGE`` and exit with code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'xnli'?`` and a space for the nearest of the known words, or nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
