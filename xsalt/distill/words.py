"""Where words begin and end in pieces, and which pieces are words on their own.

Shapes: T tokens of whole sequences, V vocabulary, N ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xsalt.text.language_vocab import SCRIPTS, UNSPACED, piece_text, script_of
from xsalt.text.tokenizer import Tokenizer

UNSPACED_SCRIPTS = frozenset(script for language in UNSPACED for script in SCRIPTS[language])


def starts_word_V(pieces: Sequence[str], initial_V: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pieces that start a word: by the tokenizer's mark (``initial_V``), or as their script is written without
    spaces."""
    starts_V: npt.NDArray[np.bool_] = initial_V.copy()
    for i, piece in enumerate(pieces):
        text = piece_text(piece)
        if not starts_V[i] and not text.isascii() and script_of(text[0]) in UNSPACED_SCRIPTS:
            starts_V[i] = True
    return starts_V


def spellings(pieces: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number for each piece; pieces that write the same, whatever their case and marks, have the same number."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(piece_text(p).casefold(), len(number)) for p in pieces])


def whole_words_T(
    ids_T: npt.NDArray[np.integer],
    special_T: npt.NDArray[np.bool_],
    starts_V: npt.NDArray[np.bool_],
    spelt_V: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Tokens that are a whole word: they start one, and up to the next start no piece has a letter or digit.

    So in ``▁house .`` the word is of one piece, and in ``▁don ' t`` and ``▁walk ing`` it isn't.

    Args:
        starts_V: pieces that start a word. spelt_V: pieces with letters or digits.
    """
    begins_T = starts_V[ids_T] | special_T
    run_T = np.cumsum(begins_T)
    more_R = np.bincount(run_T[~begins_T & spelt_V[ids_T]], minlength=int(run_T[-1]) + 1 if len(run_T) else 1)
    whole_T: npt.NDArray[np.bool_] = begins_T & ~special_T & (more_R[run_T] == 0)
    return whole_T


def stands_alone(tokenizer: Tokenizer, ids_N: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Pieces whose text, written as a word, the tokenizer leaves in one piece."""
    pieces = tokenizer.pieces()
    alone = [
        [piece_text(pieces[i]) for i in tokenizer.tokens(text) if piece_text(pieces[i])] == [text]
        for text in (piece_text(pieces[int(i)]) for i in ids_N)
    ]
    return np.array(alone, dtype=np.bool_)
