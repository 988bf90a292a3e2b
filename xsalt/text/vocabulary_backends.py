"""Where language vocabularies come from: text, word lists, the script of the letters, a user's own lists.

Backends (``vocabulary.backend``) combine in one way, language by language:

1. ``corpus`` and ``wordfreq`` *count*: each gives a relative frequency for every piece. With both, it is their mean. A
   piece is a candidate if it is above the noise of at least one of them.
2. Shared pieces, as most are among languages in Latin letters, are decided by relative frequency: a candidate belongs
   to target language l if it is at least ``ratio`` times as frequent there as in each source language. The ``size``
   most frequent ones are kept.
3. ``script`` drops candidates with a letter of another script. Alone, without frequencies, all pieces in the script
   count: only for languages that are not in Latin letters.
4. ``file`` adds what the user's list has, whatever frequencies and letters say.

A language that not all of the listed backends have comes from those that have it. ``auto`` is, for each language, the
first of ``file``, ``corpus`` with ``script``, ``wordfreq`` with ``script``, and ``script`` that has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xsalt.config_distill import VocabularyConfig
from xsalt.errors import UserError
from xsalt.files import MAX_LINE, open_file, read_bytes
from xsalt.logging import say
from xsalt.text.language_vocab import (
    FILE_NAME,
    FORMAT,
    SCRIPTS,
    Ids,
    LanguageVocabularies,
    letters_V,
    piece_scripts,
)

if TYPE_CHECKING:
    from xsalt.text.tokenizer import Tokenizer

Counts = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Plan = Mapping[str, tuple[str, ...]]
ORDER = ("corpus", "wordfreq", "script", "file")
COUNTING = frozenset({"corpus", "wordfreq"})
LATIN = frozenset({"LATIN"})
DOTTED = frozenset({"az", "tr"})
"""Languages whose capital i has a dot."""
CHUNK = 20_000
"""Texts tokenised at a time."""
MAX_LENGTH = 1 << 24
"""Tokens of a passage: no limit to speak of, nothing here is ever fed to a model."""
TITLE_SHARE = 0.2
"""Share of a listed word's frequency given to its capitalised spelling: the lists are in lower case, the tokenizers
aren't."""


def build_vocabularies(
    tokenizer: Tokenizer, languages: Sequence[str], source: Sequence[str], config: VocabularyConfig, cache: Path
) -> LanguageVocabularies:
    """The vocabularies of all these languages, source languages included, from the cache where they are there already.

    A language that nothing can serve (Latin script, no word list, no text) is left out with a warning, and one with an
    empty vocabulary is named: augmenters then never target it.

    Raises:
        UserError: for a missing or bad file or package that the configuration asks for.
    """
    every = tuple(dict.fromkeys((*source, *languages)))
    if config.folder:
        found = LanguageVocabularies.load(Path(config.folder), tokenizer)
        if found.source != tuple(source):
            say(
                f"warning: vocabulary.folder={config.folder} was made for source={','.join(found.source)}: pieces that "
                f"{','.join(source)} shares with other languages may count as theirs; write it anew with xsalt-vocab"
            )
        _tell_missing(found, every, f"{config.folder} has none: write it anew with xsalt-vocab languages=LL,LL")
        return found
    plan = _plan(every, source, config)
    folder = cache / "vocabularies" / _cache_key(tokenizer, plan, tuple(source), config)
    cached = _cached(folder, tokenizer)
    if cached is None:
        found = _build(tokenizer, plan, tuple(source), config)
        found.save(folder)
    else:
        found = cached
    _tell_missing(
        found,
        every,
        "wordfreq has no list, and Latin letters don't tell languages apart; give plain text with vocabulary.text=DIR "
        "or words with vocabulary.files=DIR (files LL.txt)",
    )
    _tell_unweighed(plan, source)
    return found


def _cached(folder: Path, tokenizer: Tokenizer) -> LanguageVocabularies | None:
    """The vocabularies kept there; None if there are none, or they are damaged, which is said."""
    if not (folder / FILE_NAME).exists():
        return None
    try:
        return LanguageVocabularies.load(folder, tokenizer)
    except UserError as error:
        say(f"language vocabularies are made anew, those in the cache are damaged: {error}")
        return None


def advice(backends: str) -> str:
    """What makes a vocabulary from these backends larger."""
    names = backends.split("+")
    if "corpus" in names:
        return "give more text, or a lower vocabulary.min_count"
    if "wordfreq" in names:
        return "give plain text with vocabulary.text=DIR, or a lower vocabulary.min_frequency"
    if "file" in names:
        return "list more words in its file"
    return "the tokenizer has few pieces in its letters"


def _tell_missing(found: LanguageVocabularies, every: Sequence[str], remedy: str) -> None:
    missing = [language for language in every if language not in found.ids]
    if missing:
        say(f"warning: no vocabulary for {', '.join(missing)}, so nothing is switched to it: {remedy}")
    for language in every:
        if language in found.ids and not len(found.ids[language]):
            say(
                f"warning: the vocabulary of {language} is empty ({found.backends[language]}), so nothing is switched "
                f"to it: {advice(found.backends[language])}"
            )


def _tell_unweighed(plan: Plan, source: Sequence[str]) -> None:
    """Shared pieces can only be decided against source languages with frequencies."""
    counted = {language for language, names in plan.items() if COUNTING & set(names)}
    unweighed = [language for language in source if language not in counted]
    if unweighed and counted - set(source):
        say(
            f"warning: no frequencies for the source language {', '.join(unweighed)}, so pieces that it shares with "
            "target languages count as theirs: give plain text with vocabulary.text=DIR"
        )


def _plan(every: Sequence[str], source: Sequence[str], config: VocabularyConfig) -> Plan:
    """The backends that serve each language, in the order in which they are applied; none if nothing does.

    Raises:
        UserError: if a named backend lacks its folder, or a language isn't served by any that is named.
    """
    for name, setting, folder in (("corpus", "text", config.text), ("file", "files", config.files)):
        if folder is None and name in config.backend:
            raise UserError(f"vocabulary.backend={name} needs vocabulary.{setting}=DIR with a file LL.txt a language")
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"vocabulary.{setting}={folder}: no such folder")
    if config.backend == ["auto"]:
        return {language: _pick_first(language, config) for language in every}
    return {language: _pick_listed(language, language in source, config) for language in every}


def _pick_first(language: str, config: VocabularyConfig) -> tuple[str, ...]:
    """``auto``: the first that has the language, a user's own list above all."""
    for name in ("file", "corpus", "wordfreq", "script"):
        if _has(name, language, config, needs_wordfreq=not _has("script", language, config)):
            return (name, "script") if name in COUNTING else (name,)
    return ()


def _pick_listed(language: str, is_source: bool, config: VocabularyConfig) -> tuple[str, ...]:
    """Those named that have the language. With ``script`` alone a source language may be in Latin letters: its
    vocabulary is then all Latin pieces."""
    names = [name for name in ORDER if name in config.backend and _has(name, language, config)]
    if "script" in config.backend and "script" not in names and (is_source or COUNTING & set(names)):
        names.insert(len(COUNTING & set(names)), "script")
    if names:
        return tuple(names)
    reasons = {
        "corpus": f"there is no {_path(config.text, language)}",
        "wordfreq": f"wordfreq has no list for {language!r}",
        "script": f"the letters of {language!r} don't tell it from others",
        "file": f"there is no {_path(config.files, language)}",
    }
    left_out = "" if is_source else f", or leave {language} out of languages"
    raise UserError(
        f"vocabulary.backend={','.join(config.backend)}: {'; '.join(reasons[name] for name in config.backend)}: "
        f"add {'the source language' if is_source else 'it'}, or use vocabulary.backend=auto{left_out}"
    )


def _has(name: str, language: str, config: VocabularyConfig, needs_wordfreq: bool = True) -> bool:
    if name == "wordfreq":
        return language in _wordfreq_languages(needs_wordfreq)
    if name == "script":
        return "LATIN" not in SCRIPTS.get(language, LATIN)
    folder = config.text if name == "corpus" else config.files
    return folder is not None and _path(folder, language).is_file()


def _path(folder: str | None, language: str) -> Path:
    return Path(folder or ".") / f"{language}.txt"


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


def _build(tokenizer: Tokenizer, plan: Plan, source: tuple[str, ...], config: VocabularyConfig) -> LanguageVocabularies:
    words_V = letters_V(tokenizer)
    counted = {
        language: _frequencies(tokenizer, language, names, config, words_V)
        for language, names in plan.items()
        if COUNTING & set(names)
    }
    source_V = np.max(
        [counted[language][0] for language in source if language in counted] or [np.zeros(len(words_V))], axis=0
    )
    scripts = (
        [piece_scripts(piece) for piece in tokenizer.pieces()] if any("script" in n for n in plan.values()) else []
    )
    ids: dict[str, Ids] = {}
    for language, names in plan.items():
        if not names:
            continue
        allowed_V = words_V
        if "script" in names:
            own = SCRIPTS.get(language, LATIN)
            allowed_V = words_V & np.fromiter(
                (bool(found) and found <= own for found in scripts), dtype=bool, count=len(scripts)
            )
        kept = np.zeros(0, dtype=np.int64)
        if language in counted:
            frequency_V, clear_V = counted[language]
            keep_V = allowed_V & clear_V
            if language not in source:
                keep_V &= frequency_V >= config.ratio * source_V
            kept = np.flatnonzero(keep_V)
            kept = kept[np.argsort(-frequency_V[kept], kind="stable")[: config.size]]
        elif "script" in names:
            kept = np.flatnonzero(allowed_V)
        if "file" in names:
            kept = np.union1d(kept, _listed(tokenizer, _path(config.files, language), words_V))
        ids[language] = np.sort(kept).astype(np.int32)
    backends = {language: "+".join(names) for language, names in plan.items() if names}
    return LanguageVocabularies(ids, backends, source, tokenizer.fingerprint)


def _frequencies(
    tokenizer: Tokenizer, language: str, names: Iterable[str], config: VocabularyConfig, words_V: Mask
) -> tuple[Counts, Mask]:
    """Relative frequency of each id among the word pieces of a language, the mean over the backends that count, and
    which ids are above the noise of one of them. Shape (V,) both."""
    frequencies, clear = [], []
    for name in names:
        if name not in COUNTING:
            continue
        path = _path(config.text, language)
        weighted = ((line, 1.0) for _, line in _lines(path)) if name == "corpus" else _word_list(language)
        weight_V = count_pieces(tokenizer, weighted) * words_V
        total = float(weight_V.sum())
        if total == 0:
            where = str(path) if name == "corpus" else f"wordfreq's list for {language!r}"
            raise UserError(f"{where}: no word piece of the tokenizer in it, so the vocabulary would be empty")
        least = config.min_count / total if name == "corpus" else config.min_frequency
        frequencies.append(weight_V / total)
        clear.append((weight_V > 0) & (frequencies[-1] >= least))
    return np.mean(frequencies, axis=0), np.any(clear, axis=0)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that aren't empty, with their numbers."""
    with open_file(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 2), b""), 1):
            if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
                raise UserError(f"{path}:{number}: the line is longer than {MAX_LINE:,} bytes: break it up")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 ({error.reason}): convert it first") from error
            if "\0" in line:
                raise UserError(f"{path}:{number}: a NUL byte: is this a text file?")
            if line:
                yield number, line


def _word_list(language: str) -> Iterator[tuple[str, float]]:
    """Words with their frequencies, as they are written: the lists are casefolded, which spells a final ``ς`` as
    ``σ``. (``ß`` is lost to ``ss`` for good.)"""
    import wordfreq

    for folded, frequency in wordfreq.get_frequency_dict(language, "small").items():
        word = folded[:-1] + "ς" if folded.endswith("σ") else folded
        title = ("İ" if word[0] == "i" and language in DOTTED else word[0].upper()) + word[1:]
        if title == word:
            yield word, frequency
        else:
            yield word, (1 - TITLE_SHARE) * frequency
            yield title, TITLE_SHARE * frequency


def count_pieces(tokenizer: Tokenizer, weighted: Iterable[tuple[str, float]]) -> Counts:
    """Weighted occurrences of each id in texts, of shape (V,)."""
    count_V = np.zeros(tokenizer.vocab_size)
    stream = iter(weighted)
    while chunk := list(islice(stream, CHUNK)):
        encoded = tokenizer.encode([text for text, _ in chunk], None, MAX_LENGTH)
        weight_N = np.repeat([weight for _, weight in chunk], np.diff(encoded.offsets))
        count_V += np.bincount(encoded.ids_N, weights=weight_N, minlength=tokenizer.vocab_size)
    return count_V


def _listed(tokenizer: Tokenizer, path: Path, words_V: Mask) -> Ids:
    """Ids of a user's file: a word a line, or a piece with its mark, ``▁`` if it starts a word and ``##`` if it
    continues one, whatever the tokenizer's own spelling. A word that the tokenizer cuts counts as its pieces.

    Raises:
        UserError: for a line with several words, a piece that the tokenizer lacks, or a file without any word piece.
    """
    known = {piece: i for i, piece in enumerate(tokenizer.pieces()) if piece}
    lines, ids = list(_lines(path)), []
    for number, line in lines:
        if len(line.split()) > 1:
            raise UserError(f"{path}:{number}: {line[:40]!r} is more than one word: write one word or piece a line")
        if line.startswith(("▁", "##")):
            ids.append([_piece_id(tokenizer, known, line, f"{path}:{number}")])
        else:
            ids.append(tokenizer.tokens(line))
    idle = [i for i, found in enumerate(ids) if not words_V[found].any()]
    if len(idle) == len(lines):
        raise UserError(f"{path}: no word piece of the tokenizer in it, so the vocabulary would be empty")
    if idle:
        number, line = lines[idle[0]]
        say(
            f"warning: {path}: {len(idle)} lines have no word piece, so they add nothing; first {number}: {line[:40]!r}"
        )
    listed_V = np.zeros_like(words_V)
    listed_V[[id_ for found in ids for id_ in found]] = True
    return np.flatnonzero(listed_V & words_V).astype(np.int32)


def _piece_id(tokenizer: Tokenizer, known: Mapping[str, int], line: str, where: str) -> int:
    """The id of a marked piece. Unigram vocabularies don't mark continuations, WordPiece ones don't mark starts."""
    for spelt in (line, line.removeprefix("##").removeprefix("▁")):
        if spelt in known and tokenizer.word_initial_V[known[spelt]] == line.startswith("▁"):
            return known[spelt]
    raise UserError(f"{where}: {line[:40]!r} is no piece of the tokenizer: write words without a mark")


def _cache_key(tokenizer: Tokenizer, plan: Plan, source: tuple[str, ...], config: VocabularyConfig) -> str:
    """Everything that the vocabularies depend on: file contents instead of paths, the version of wordfreq."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("folder", "text", "files", "backend")}
    contents = {
        f"{name} {language}": hashlib.sha256(read_bytes(_path(folder, language))).hexdigest()
        for language, names in plan.items()
        for name, folder in (("corpus", config.text), ("file", config.files))
        if name in names
    }
    if any("wordfreq" in names for names in plan.values()):
        from importlib.metadata import version

        settings["wordfreq"] = version("wordfreq")
    key = json.dumps(
        [FORMAT, tokenizer.fingerprint, dict(plan), source, settings, contents, TITLE_SHARE], sort_keys=True
    )
    return hashlib.sha256(key.encode()).hexdigest()[:32]
