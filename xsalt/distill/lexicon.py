"""Precision of substitutions against a bilingual lexicon, in all and by probability. It only measures: nothing is tuned
on it.

Shapes: N tokens of the corpus, V vocabulary, P float16 numbers from 0 to 1, as their bits count them up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xsalt.data.dataset import Dataset
from xsalt.data.rows import RowLog, read_lines
from xsalt.data.substitutions import SubstitutionTable
from xsalt.errors import UserError
from xsalt.text.language_vocab import piece_text
from xsalt.text.tokenizer import Tokenizer

Lexicon = Mapping[str, frozenset[str]]
MIN_LETTERS = 4
"""Shorter words are mostly function words, which no lexicon settles."""
CHUNK = 1 << 18
"""Tokens looked at together."""
_P = int(np.float16(1).view(np.uint16)) + 1


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
    for number, line in read_lines(path, RowLog()):
        if not line.strip():
            continue
        fields = line.strip().split("\t" if "\t" in line.strip() else None)
        if len(fields) != 2 or not all(field.strip() for field in fields):
            raise UserError(f"{path}:{number}: {line[:40]!r} holds no two words: write a word, a tab, its translation")
        source, target = fields
        pairs.setdefault(source.lower().strip(), set()).add(target.lower().strip())
    if not pairs:
        raise UserError(f"{path}: no word pairs in it")
    return {word: frozenset(translations) for word, translations in pairs.items()}


@dataclass(frozen=True)
class Judged:
    """Best substitutions held against a lexicon.

    Attributes:
        counted: occurrences of words that the lexicon settles. right: those whose best substitution it lists.
        switched_P, right_P: those that have a substitution other than themselves, by its probability.
    """

    counted: int
    right: int
    switched_P: npt.NDArray[np.int64]
    right_P: npt.NDArray[np.int64]


def judge(
    table: SubstitutionTable, dataset: Dataset, tokenizer: Tokenizer, lexicon: Lexicon, source: str, language: str
) -> Judged:
    """Holds the best substitutions of a source language's sentences against a lexicon.

    Every occurrence counts of a lexicon word that is one piece and longer than three letters. The best substitution
    counts without threshold or abstention; identity is wrong unless the lexicon lists it. Case doesn't count.

    Args:
        dataset: the corpus that the table was made of.
        source, language: the languages of the lexicon's words and of their translations.
    """
    pieces = tokenizer.pieces()
    initial_V = tokenizer.word_initial_V
    words = {int(i): piece_text(pieces[i]).lower() for i in np.flatnonzero(initial_V)}
    known = {i: lexicon[word] for i, word in words.items() if len(word) >= MIN_LETTERS and word in lexicon}
    known_V = np.zeros(len(pieces), dtype=np.bool_)
    known_V[list(known)] = True
    goes_on_V = ~initial_V & np.array([piece_text(piece)[:1].isalpha() for piece in pieces], dtype=np.bool_)
    column = table.languages.index(language)
    counted, right = 0, 0
    switched_P, right_P = np.zeros(_P, dtype=np.int64), np.zeros(_P, dtype=np.int64)
    ids_N = dataset.ids
    for at in _occurrences(dataset, source, known_V, goes_on_V):
        bits = table.probability_NLK[at, column, 0].view(np.uint16)
        triples = np.stack([ids_N[at], table.ids_NLK[at, column, 0], bits.astype(np.int32)], axis=1)
        for (source, target, p), n in zip(*np.unique(triples, axis=0, return_counts=True), strict=True):
            hit = target >= 0 and piece_text(pieces[target]).lower() in known[int(source)]
            counted += int(n)
            right += int(n) * hit
            if target >= 0 and target != source:
                switched_P[p] += n
                right_P[p] += n * hit
    return Judged(counted, right, switched_P, right_P)


def _occurrences(
    dataset: Dataset, source: str, known_V: npt.NDArray[np.bool_], goes_on_V: npt.NDArray[np.bool_]
) -> Iterator[npt.NDArray[np.int64]]:
    """Tokens of the source language that are known words and don't go on with the next token."""
    of_source = np.array([language == source for language in dataset.languages])[dataset.language]
    tokens = len(dataset.ids)
    for start in range(0, tokens, CHUNK):
        stop = min(start + CHUNK, tokens)
        ids, special = np.array(dataset.ids[start : stop + 1]), np.array(dataset.special[start : stop + 1])
        ends = np.append(special[1:] | ~goes_on_V[ids[1:]], True)
        at = start + np.flatnonzero((known_V[ids] & ~special & ends)[: stop - start])
        yield at[of_source[np.searchsorted(dataset.offsets, at, side="right") - 1]]


def precision_by_decile(
    switched_P: npt.NDArray[np.int64], right_P: npt.NDArray[np.int64]
) -> list[dict[str, float | int]]:
    """``from`` (least probability), ``n`` and ``precision`` of each tenth of the substitutions, by probability.

    A substitution of a word by itself is none. Equal probabilities are never parted, so that tenths may differ in size
    and some be missing.
    """
    total = int(switched_P.sum())
    middle_P = np.cumsum(switched_P) - switched_P / 2
    decile_P = np.minimum(9, 10 * middle_P / max(1, total)).astype(np.int64)
    value_P = np.arange(_P, dtype=np.uint16).view(np.float16)
    rows: list[dict[str, float | int]] = []
    for decile in range(10):
        inside = (decile_P == decile) & (switched_P > 0)
        if inside.any():
            n = int(switched_P[inside].sum())
            precision = round(int(right_P[inside].sum()) / n, 4)
            rows.append({"from": round(float(value_P[inside][0]), 4), "n": n, "precision": precision})
    return rows
