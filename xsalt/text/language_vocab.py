"""Language vocabularies: which ids of a shared tokenizer count as which language.

A multilingual tokenizer has one vocabulary V for all languages. SALT (arXiv 2309.10891) predicts "only tokens of a
specific target language"; how the paper delimits them is not stated, so this is our choice. Pieces that several
Latin-script languages share are decided by relative frequency: an id belongs to target language l if it is frequent
enough there and at least ``ratio`` times as frequent as in the source languages.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xsalt.config_distill import VocabularyConfig
from xsalt.errors import UserError
from xsalt.logging import say

if TYPE_CHECKING:
    from xsalt.text.tokenizer import Tokenizer

Ids = npt.NDArray[np.int32]
Frequencies = npt.NDArray[np.float64]
FORMAT = 1
FILE_NAME = "vocabulary.json"
CHUNK = 20_000
"""Texts tokenised at a time."""
MAX_LENGTH = 1 << 24
"""Tokens of a passage: no limit to speak of, nothing here is ever fed to a model."""
THIN = 500
"""Ids below which a language's vocabulary is worth a warning."""

SCRIPTS: dict[str, frozenset[str]] = {
    language: frozenset(scripts.split())
    for languages, scripts in (
        ("ar fa ur ps ckb sd ug", "ARABIC"),
        ("be bg kk ky mk mn ru sr tg tt uk", "CYRILLIC"),
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
        ("ta", "TAMIL"),
        ("te", "TELUGU"),
        ("th", "THAI"),
        ("zh", "CJK"),
    )
    for language in languages.split()
}
"""Scripts (first word of the letters' Unicode names) of languages that are not written in Latin letters."""

UNSPACED = frozenset({"zh", "ja", "th", "km", "lo", "my"})
"""Languages written without spaces, whose words seldom begin a written word."""


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").split()[0]


def piece_text(piece: str) -> str:
    """What a piece writes: without the mark of a word's start or of its continuation."""
    return piece.removeprefix("##").lstrip("▁").removesuffix("</w>")


def has_letters(piece: str) -> bool:
    """Whether a piece can count as a word or a part of one: it has a letter, and no digit."""
    text = piece_text(piece)
    return any(c.isalpha() for c in text) and not any(c.isnumeric() and not c.isalpha() for c in text)


def letters_V(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Which ids are (parts of) words: with letters, without digits, not special. Shape (V,)."""
    words_V = np.fromiter((has_letters(piece) for piece in tokenizer.pieces()), dtype=bool, count=tokenizer.vocab_size)
    words_V[sorted(tokenizer.special_ids)] = False
    return words_V


@dataclass(frozen=True)
class LanguageVocabularies:
    """The ids of each language.

    Attributes:
        ids: language -> its ids, int32, sorted. Languages for which nothing could be had are missing.
        backends: language -> what its ids come from (``corpus``, ``wordfreq``, ``script``).
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
        """Writes ``vocabulary.json`` into the folder, all or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "tokenizer": self.tokenizer,
            "source": list(self.source),
            "languages": {
                language: {"backend": self.backends[language], "ids": ids.tolist()}
                for language, ids in self.ids.items()
            },
        }
        handle, name = tempfile.mkstemp(dir=folder, prefix=".vocabulary-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(name, folder / FILE_NAME)

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer) -> LanguageVocabularies:
        """Reads what ``save`` wrote. Raises ``UserError`` if it is damaged or belongs to another tokenizer."""
        path = folder / FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            languages = content["languages"]
            ids = {language: np.array(entry["ids"], dtype=np.int32) for language, entry in languages.items()}
            loaded = cls(
                ids,
                {k: str(v["backend"]) for k, v in languages.items()},
                tuple(content["source"]),
                content["tokenizer"],
            )
        except OSError as error:
            raise UserError(
                f"{path}: no language vocabularies there ({error.strerror}): write them with xsalt-vocab"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({type(error).__name__}): write it anew with xsalt-vocab") from error
        if loaded.tokenizer != tokenizer.fingerprint:
            raise UserError(
                f"{path}: made for another tokenizer, so its ids mean nothing here: write it anew with xsalt-vocab"
            )
        if any(len(v) and (v.min() < 0 or v.max() >= tokenizer.vocab_size) for v in ids.values()):
            raise UserError(f"{path}: damaged (ids outside of the tokenizer): write it anew with xsalt-vocab")
        return loaded


def build_vocabularies(
    tokenizer: Tokenizer, languages: Sequence[str], source: Sequence[str], config: VocabularyConfig, cache: Path
) -> LanguageVocabularies:
    """The vocabularies of all these languages, source languages included, from the cache where they are there already.

    A language that no backend can serve (Latin script, no word list, no text) is left out with a warning: augmenters
    then never target it.

    Raises:
        UserError: for a missing text file or package that the configuration asks for by name.
    """
    if config.folder:
        return LanguageVocabularies.load(Path(config.folder), tokenizer)
    every = tuple(dict.fromkeys((*source, *languages)))
    plan = {language: _pick_backend(language, language in source, config) for language in every}
    missing = [language for language, backend in plan.items() if not backend]
    if missing:
        say(
            f"warning: no vocabulary for {', '.join(missing)}, so nothing is switched to it: wordfreq has no list, and "
            "Latin letters don't tell languages apart; give plain text with vocabulary.text=DIR (files LL.txt)"
        )
    key = _cache_key(tokenizer, plan, tuple(source), config)
    folder = cache / "vocabularies" / key
    if (folder / FILE_NAME).exists():
        return LanguageVocabularies.load(folder, tokenizer)
    built = _build(tokenizer, plan, tuple(source), config)
    built.save(folder)
    return built


def _build(
    tokenizer: Tokenizer, plan: Mapping[str, str], source: tuple[str, ...], config: VocabularyConfig
) -> LanguageVocabularies:
    words_V = letters_V(tokenizer)
    counted = {
        language: _frequencies(tokenizer, language, backend, config, words_V)
        for language, backend in plan.items()
        if backend in ("corpus", "wordfreq")
    }
    source_V = np.max(
        [counted[language][0] for language in source if language in counted] or [np.zeros(len(words_V))], axis=0
    )
    ids: dict[str, Ids] = {}
    for language, backend in plan.items():
        if backend == "script":
            ids[language] = _ids_of_script(tokenizer, language, words_V)
        elif backend:
            frequency_V, least = counted[language]
            keep_V = (frequency_V > 0) & (frequency_V >= least)
            if language not in source:
                keep_V &= frequency_V >= config.ratio * source_V
            kept = np.flatnonzero(keep_V)
            best = np.argsort(-frequency_V[kept], kind="stable")[: config.size]
            ids[language] = np.sort(kept[best]).astype(np.int32)
    backends = {language: backend for language, backend in plan.items() if backend}
    return LanguageVocabularies(ids, backends, source, tokenizer.fingerprint)


def _pick_backend(language: str, is_source: bool, config: VocabularyConfig) -> str:
    """The backend that serves this language, or "" if the configuration leaves the choice and none does.

    With the script backend a source language may be in Latin letters: its vocabulary is then all Latin pieces.
    """
    has_text = bool(config.text) and _text_file(config, language).is_file()
    if config.backend == "corpus":
        if not config.text:
            raise UserError(
                "vocabulary.backend=corpus needs plain text: vocabulary.text=DIR with a file LL.txt a language"
            )
        if not has_text:
            raise UserError(
                f"{_text_file(config, language)}: no such file, the corpus backend needs it for language {language!r}"
            )
        return "corpus"
    if config.backend == "wordfreq":
        if language not in _wordfreq_languages(required=True):
            raise UserError(
                f"vocabulary.backend=wordfreq: wordfreq has no list for {language!r}: use vocabulary.backend=auto"
            )
        return "wordfreq"
    if config.backend == "script":
        if language not in SCRIPTS and not is_source:
            raise UserError(
                f"vocabulary.backend=script: the letters of {language!r} don't tell it from others: "
                "use vocabulary.backend=auto"
            )
        return "script"
    if config.text and not Path(config.text).is_dir():
        raise UserError(f"vocabulary.text={config.text}: no such folder")
    if has_text:
        return "corpus"
    if language in _wordfreq_languages(required=language not in SCRIPTS):
        return "wordfreq"
    return "script" if language in SCRIPTS else ""


def _text_file(config: VocabularyConfig, language: str) -> Path:
    return Path(config.text or ".") / f"{language}.txt"


@lru_cache(maxsize=2)
def _wordfreq_languages(required: bool) -> frozenset[str]:
    """Languages with a list. (``wordfreq`` itself answers for Swahili with the English list: never ask it.)"""
    try:
        import wordfreq
    except ImportError:
        if required:
            raise UserError(
                "language vocabularies need the package wordfreq, which isn't installed: pip install 'xsalt[wordfreq]' "
                "(or give plain text: vocabulary.text=DIR)"
            ) from None
        return frozenset()
    return frozenset(wordfreq.available_languages("small"))


def _frequencies(
    tokenizer: Tokenizer, language: str, backend: str, config: VocabularyConfig, words_V: npt.NDArray[np.bool_]
) -> tuple[Frequencies, float]:
    """Relative frequency of each id among the word pieces of a language, and the least that is not noise. Shape
    (V,)."""
    if backend == "corpus":
        weight_V = _count(tokenizer, _lines(_text_file(config, language)))
    else:
        weight_V = _count(tokenizer, _word_list(language))
    weight_V[~words_V] = 0
    total = float(weight_V.sum())
    if total == 0:
        raise UserError(f"language {language!r}: no word piece in its {backend}, so its vocabulary would be empty")
    least = config.min_count / total if backend == "corpus" else config.min_frequency
    return weight_V / total, least


def _lines(path: Path) -> Iterator[tuple[str, float]]:
    with path.open(encoding="utf-8") as file:
        try:
            yield from ((line, 1.0) for line in map(str.strip, file) if line)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason}): convert it first") from error


TITLE_SHARE = 0.2
"""Share of a listed word's frequency given to its capitalised spelling: the lists are in lower case, the tokenizers
aren't."""


def _word_list(language: str) -> Iterator[tuple[str, float]]:
    import wordfreq

    for word, frequency in wordfreq.get_frequency_dict(language, "small").items():
        title = word[:1].upper() + word[1:]
        if title == word:
            yield word, frequency
        else:
            yield word, (1 - TITLE_SHARE) * frequency
            yield title, TITLE_SHARE * frequency


def _count(tokenizer: Tokenizer, weighted: Iterable[tuple[str, float]]) -> Frequencies:
    """Weighted occurrences of each id, of shape (V,)."""
    count_V = np.zeros(tokenizer.vocab_size)
    stream = iter(weighted)
    while chunk := list(islice(stream, CHUNK)):
        encoded = tokenizer.encode([text for text, _ in chunk], None, MAX_LENGTH)
        weight_N = np.repeat([weight for _, weight in chunk], np.diff(encoded.offsets))
        count_V += np.bincount(encoded.ids_N, weights=weight_N, minlength=tokenizer.vocab_size)
    return count_V


def _ids_of_script(tokenizer: Tokenizer, language: str, words_V: npt.NDArray[np.bool_]) -> Ids:
    scripts = SCRIPTS.get(language, frozenset({"LATIN"}))
    kept = [
        i
        for i, piece in enumerate(tokenizer.pieces())
        if words_V[i] and all(_script(c) in scripts for c in piece_text(piece) if c.isalpha())
    ]
    return np.array(kept, dtype=np.int32)


def _cache_key(tokenizer: Tokenizer, plan: Mapping[str, str], source: tuple[str, ...], config: VocabularyConfig) -> str:
    """Everything that the vocabularies depend on: file contents instead of paths, the version of wordfreq."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("folder", "text", "backend")}
    contents = {
        language: hashlib.sha256(_text_file(config, language).read_bytes()).hexdigest()
        for language, backend in plan.items()
        if backend == "corpus"
    }
    if "wordfreq" in plan.values():
        from importlib.metadata import version

        settings["wordfreq"] = version("wordfreq")
    key = json.dumps(
        [FORMAT, tokenizer.fingerprint, dict(plan), source, settings, contents, TITLE_SHARE], sort_keys=True
    )
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def overlaps(vocabularies: LanguageVocabularies) -> dict[tuple[str, str], int]:
    """How many ids two languages share, for each pair."""
    names = list(vocabularies.ids)
    return {
        (a, b): len(np.intersect1d(vocabularies.ids[a], vocabularies.ids[b], assume_unique=True))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
