"""P@1 of substitutions against a bilingual lexicon. It only measures: nothing is tuned on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xsalt.data.substitutions import SubstitutionTable
from xsalt.errors import UserError
from xsalt.text.language_vocab import piece_text
from xsalt.text.tokenizer import Tokenizer

Lexicon = Mapping[str, frozenset[str]]
MIN_LETTERS = 4
"""Shorter words are mostly function words, which no lexicon settles."""


def find_lexicons(path: Path, source: str, languages: tuple[str, ...]) -> dict[str, Path]:
    """Language -> file, from one file ``SOURCE-LL.txt`` or a folder of them. Raises ``UserError`` if there is none."""
    if path.is_dir():
        found = {language: path / f"{source}-{language}.txt" for language in languages}
        found = {language: file for language, file in found.items() if file.is_file()}
        if not found:
            raise UserError(f"lexicon={path}: no file {source}-LL.txt for any of {', '.join(languages)}")
        return found
    if not path.is_file():
        raise UserError(f"lexicon={path}: no such file or folder")
    language = path.stem.rpartition("-")[2]
    if language not in languages:
        if len(languages) != 1:
            raise UserError(f"lexicon={path}: name it {source}-LL.txt, with LL one of {', '.join(languages)}")
        language = languages[0]
    return {language: path}


def read_lexicon(path: Path) -> dict[str, frozenset[str]]:
    """Source word -> its translations, in lower case. A line holds two words, with a tab or a space between.

    Raises:
        UserError: naming the line, if it is not UTF-8 or holds no two words.
    """
    pairs: dict[str, set[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}): convert it first") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        source, _, target = line.strip().partition("\t" if "\t" in line else " ")
        if not target.strip():
            raise UserError(f"{path}:{number}: {line[:40]!r} holds no two words: write a word, a tab, its translation")
        pairs.setdefault(source.lower().strip(), set()).add(target.lower().strip())
    return {word: frozenset(translations) for word, translations in pairs.items()}


def p_at_1(
    table: SubstitutionTable,
    ids_N: npt.NDArray[np.int32],
    special_N: npt.NDArray[np.bool_],
    tokenizer: Tokenizer,
    lexicon: Lexicon,
    language: str,
) -> tuple[float, int]:
    """Share of occurrences whose best substitution the lexicon lists, and how many occurrences there are.

    Every occurrence counts of a lexicon word that is one piece and longer than three letters. The best substitution
    counts without threshold or abstention; identity is wrong unless the lexicon lists it. Case doesn't count.

    Args:
        ids_N, special_N: the corpus that the table was made of.
    """
    pieces = tokenizer.pieces()
    initial_V = tokenizer.word_initial_V
    occurs = np.zeros(len(pieces), dtype=np.bool_)
    occurs[np.unique(ids_N)] = True
    words = {int(i): piece_text(pieces[i]).lower() for i in np.flatnonzero(occurs & initial_V)}
    known = {i: lexicon[word] for i, word in words.items() if len(word) >= MIN_LETTERS and word in lexicon}
    known_V = np.zeros(len(pieces), dtype=np.bool_)
    known_V[list(known)] = True
    ends_N = np.append(special_N[1:] | _starts_word(ids_N[1:], pieces, initial_V), True)
    counted = np.flatnonzero(known_V[ids_N] & ~special_N & ends_N)
    best = table.ids_NLK[counted, table.languages.index(language), 0]
    pairs, times = np.unique(np.stack([ids_N[counted], best], axis=1), axis=0, return_counts=True)
    right = sum(
        int(n)
        for (source, target), n in zip(pairs, times, strict=True)
        if target >= 0 and piece_text(pieces[target]).lower() in known[int(source)]
    )
    return right / max(1, len(counted)), len(counted)


def _starts_word(
    ids_N: npt.NDArray[np.int32], pieces: list[str], initial_V: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Whether a token doesn't go on with the word before it: it starts a word, or it is no letter."""
    goes_on_V = np.zeros(len(pieces), dtype=np.bool_)
    for i in np.unique(ids_N):
        goes_on_V[i] = not initial_V[i] and piece_text(pieces[i])[:1].isalpha()
    return ~goes_on_V[ids_N]
