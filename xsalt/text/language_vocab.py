"""Language vocabularies: which ids of a shared tokenizer count as which language.

A multilingual tokenizer has one vocabulary V for all languages. SALT (arXiv 2309.10891) predicts "only tokens of a
specific target language"; how the paper delimits them is not stated. ``xsalt.text.vocabulary_backends`` has our ways
of delimiting them; here is what they give.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xsalt.checkpoint import atomic_file
from xsalt.errors import UserError
from xsalt.files import read_json

if TYPE_CHECKING:
    from xsalt.text.tokenizer import Tokenizer

Ids = npt.NDArray[np.int32]
FORMAT = 2
FILE_NAME = "vocabulary.json"
THIN = 500
"""Ids below which a language's vocabulary is worth a warning."""

UNSPACED = frozenset({"zh", "ja", "th", "km", "lo", "my"})
"""Languages written without spaces, whose words seldom begin a written word."""

SCRIPTS: dict[str, frozenset[str]] = {
    language: frozenset(scripts.split())
    for languages, scripts in (
        ("ar fa ur ps ckb sd ug", "ARABIC"),
        ("be bg kk ky mk mn ru tg tt uk", "CYRILLIC"),
        ("el", "GREEK"),
        ("hi mr ne sa", "DEVANAGARI"),
        ("as bn", "BENGALI"),
        ("am ti", "ETHIOPIC"),
        ("gu", "GUJARATI"),
        ("pa", "GURMUKHI"),
        ("he yi", "HEBREW"),
        ("hy", "ARMENIAN"),
        ("ja", "CJK HIRAGANA KATAKANA"),
        ("ka", "GEORGIAN"),
        ("km", "KHMER"),
        ("kn", "KANNADA"),
        ("ko", "HANGUL"),
        ("lo", "LAO"),
        ("ml", "MALAYALAM"),
        ("my", "MYANMAR"),
        ("or", "ORIYA"),
        ("si", "SINHALA"),
        ("sr", "CYRILLIC LATIN"),
        ("ta", "TAMIL"),
        ("te", "TELUGU"),
        ("th", "THAI"),
        ("zh", "CJK"),
    )
    for language in languages.split()
}
"""Scripts (first word of the letters' Unicode names) of languages that are not written in Latin letters alone."""

SHARED_LETTERS = frozenset({"MODIFIER", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"})
"""First words of the names of letters that several scripts use: ``ー``, ``々``, ``ʻ``."""


def piece_text(piece: str) -> str:
    """What a piece writes: without the mark of a word's start or of its continuation."""
    return piece.removeprefix("##").lstrip("▁").removesuffix("</w>")


@cache
def script_of(letter: str) -> str:
    """Its Unicode script, as the first word of its name: ``LATIN``, ``CJK``."""
    return unicodedata.name(letter, "?").split()[0]


def piece_scripts(piece: str) -> frozenset[str]:
    """Scripts of a piece's letters, as ``SCRIPTS`` spells them; letters of several scripts have none."""
    return frozenset(script_of(c) for c in piece_text(piece) if c.isalpha()) - SHARED_LETTERS


def is_word_piece(piece: str) -> bool:
    """Whether a piece can count as a word or a part of one: letters with their marks and joiners, and nothing else.

    Digits, punctuation and symbols never count, not even beside letters: as a substitution, ``▁ہے۔`` would end the
    sentence.
    """
    text = piece_text(piece)
    return any(c.isalpha() for c in text) and all(
        c.isalpha() or unicodedata.category(c) in ("Mn", "Mc", "Me", "Cf") for c in text
    )


def letters_V(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Which ids are (parts of) words, see ``is_word_piece``, and not special. Shape (V,)."""
    words_V = np.fromiter(map(is_word_piece, tokenizer.pieces()), dtype=bool, count=tokenizer.vocab_size)
    words_V[sorted(tokenizer.special_ids)] = False
    return words_V


@dataclass(frozen=True)
class LanguageVocabularies:
    """The ids of each language.

    Attributes:
        ids: language -> its ids, int32, sorted. Languages for which nothing could be had are missing.
        backends: language -> what its ids come from, in words such as ``corpus`` or ``corpus+script``.
        source: the source languages.
        tokenizer: fingerprint of the tokenizer that the ids belong to.
    """

    ids: Mapping[str, Ids]
    backends: Mapping[str, str]
    source: tuple[str, ...]
    tokenizer: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over languages and ids: two vocabularies with the same ids are the same, wherever they come from."""
        digest = hashlib.sha256(self.tokenizer.encode())
        for language in sorted(self.ids):
            digest.update(f"\0{language}\0".encode() + self.ids[language].tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Writes ``vocabulary.json`` into the folder, all or nothing, with a SHA-256 of what it says.

        Raises:
            UserError: if it can't be written.
        """
        content = {
            "format": FORMAT,
            "tokenizer": self.tokenizer,
            "source": list(self.source),
            "languages": {
                language: {"backend": self.backends[language], "ids": ids.tolist()}
                for language, ids in self.ids.items()
            },
        }
        try:
            with atomic_file(folder / FILE_NAME) as new:
                new.write_text(json.dumps({**content, "sha256": _checksum(content)}), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{folder}: the vocabularies can't be written ({error.strerror or error}): make room, or give another "
                "folder (out=DIR; for the cache XSALT_CACHE)"
            ) from error

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer) -> LanguageVocabularies:
        """Reads what ``save`` wrote. Raises ``UserError`` if it is damaged or belongs to another tokenizer."""
        path = folder / FILE_NAME
        anew = "delete it, or write it anew with xsalt-vocab"
        if not path.exists():
            raise UserError(f"{path}: no language vocabularies there: write them with xsalt-vocab")
        try:
            content = read_json(path)
        except UserError as error:
            raise UserError(f"{path}: damaged: {error}: {anew}") from error
        try:
            if content["format"] != FORMAT:
                raise UserError(f"{path}: of format {str(content['format'])[:40]}, not {FORMAT}: {anew}")
            if content.pop("sha256") != _checksum(content):
                raise UserError(f"{path}: damaged or edited, its SHA-256 is another one: {anew}")
            languages = content["languages"]
            loaded = cls(
                {language: _ids(entry["ids"]) for language, entry in languages.items()},
                {language: str(entry["backend"]) for language, entry in languages.items()},
                tuple(map(str, content["source"])),
                content["tokenizer"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({type(error).__name__}): {anew}") from error
        if loaded.tokenizer != tokenizer.fingerprint:
            raise UserError(
                f"{path}: made for another tokenizer, so its ids mean nothing here: write it anew with xsalt-vocab"
            )
        for language, ids in loaded.ids.items():
            if len(ids) and int(ids[-1]) >= tokenizer.vocab_size:
                raise UserError(f"{path}: damaged: {language} has the id {ids[-1]}, the tokenizer has fewer: {anew}")
        return loaded


def _ids(listed: Any) -> Ids:
    """Ids as ``save`` writes them, sorted. Raises ``ValueError`` for anything else."""
    if not isinstance(listed, list) or not all(type(id_) is int and 0 <= id_ < 2**31 for id_ in listed):
        raise ValueError("ids are whole numbers")
    if any(a >= b for a, b in pairwise(listed)):
        raise ValueError("ids are sorted")
    return np.array(listed, dtype=np.int32)


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the values, however the file spells them."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def overlaps(vocabularies: LanguageVocabularies) -> dict[tuple[str, str], int]:
    """How many ids two languages share, for each pair."""
    names = list(vocabularies.ids)
    return {
        (a, b): len(np.intersect1d(vocabularies.ids[a], vocabularies.ids[b], assume_unique=True))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
