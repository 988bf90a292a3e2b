"""What ``xsalt-vocab`` does: language vocabularies made, looked at, measured on text, and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from xsalt.config import Composed
from xsalt.errors import UserError
from xsalt.logging import say
from xsalt.text.language_vocab import THIN, Ids, LanguageVocabularies, letters_V, overlaps
from xsalt.text.tokenizer import Tokenizer
from xsalt.text.vocabulary_backends import Counts, advice, build_vocabularies, count_pieces
from xsalt.training.run import Setup

PAIRS = 12
"""Pairs of languages shown, those that share the largest part of the smaller vocabulary."""


@dataclass(frozen=True)
class Row:
    """What there is to say of a language's vocabulary.

    Attributes:
        ids: how many.
        backend: what they come from.
        shared: other language -> ids that are in its vocabulary too, none left out.
        examples: pieces, evenly over the ids.
        coverage: share of the running word pieces of text in the language that are in the vocabulary; None if not
            measured.
        source_coverage: the same of text in the source languages.
    """

    ids: int
    backend: str
    shared: dict[str, int]
    examples: list[str]
    coverage: float | None = None
    source_coverage: float | None = None


def vocab(config: Composed, out: str | None, examples: int, coverage: bool, json_: bool) -> int:
    """Builds or finds the language vocabularies, shows them, and writes them to a folder for ``vocabulary.folder``.

    Args:
        examples: pieces shown of each language.
        coverage: measure on the texts of ``eval.split``. Their labels are not looked at.
        json_: print JSON, for programs.
    """
    setup = Setup.open(config, evaluated=coverage)
    vocabularies = build_vocabularies(
        setup.tokenizer, setup.languages, setup.source, config.train.vocabulary, setup.cache
    )
    texts = _texts(setup) if coverage else {}
    setup.tell_skipped()
    rows = describe(vocabularies, setup.tokenizer, examples, texts)
    if json_:
        print(as_json(vocabularies, rows))
    else:
        print(as_text(rows, vocabularies.source, bool(texts)))
    for language, row in rows.items():
        if 0 < row.ids < THIN:
            say(f"warning: the vocabulary of {language} is thin ({row.ids} ids): {advice(row.backend)}")
    if out:
        vocabularies.save(Path(out))
        say(f"vocabularies: {Path(out)} (use them with vocabulary.folder={out})")
    return 0


def _texts(setup: Setup) -> dict[str, list[str]]:
    """Both texts of all examples of ``eval.split``, in the languages that have it."""
    split = setup.config.train.eval.split
    if split == "test":
        raise UserError("coverage=true eval.split=test: test sets are read by evaluation alone: measure on dev")
    languages = [language for language in setup.languages if language in setup.task.languages(split)]
    if not languages:
        raise UserError(f"coverage=true: {setup.task.where} has no {split} split in {', '.join(setup.languages)}")
    rows = {language: setup.task.read(split, language) for language in languages}
    return {language: [t for row in rows[language] for t in (row.first, row.second) if t] for language in languages}


def describe(
    vocabularies: LanguageVocabularies, tokenizer: Tokenizer, examples: int, texts: Mapping[str, list[str]]
) -> dict[str, Row]:
    """A row for each language, measured on its texts where there are any."""
    pieces, words_V = tokenizer.pieces(), letters_V(tokenizer)
    counts = {
        language: count_pieces(tokenizer, ((text, 1.0) for text in of_language)) * words_V
        for language, of_language in texts.items()
    }
    source_V = sum((counts[language] for language in vocabularies.source if language in counts), np.zeros(len(words_V)))
    shared: dict[str, dict[str, int]] = {language: {} for language in vocabularies.ids}
    for (a, b), n in overlaps(vocabularies).items():
        shared[a][b] = shared[b][a] = n
    rows = {}
    for language, ids in vocabularies.ids.items():
        spread = ids[np.linspace(0, len(ids) - 1, min(examples, len(ids))).astype(np.int64)]
        rows[language] = Row(
            len(ids),
            vocabularies.backends[language],
            shared[language],
            [pieces[i] for i in spread.tolist()],
            _share(ids, counts.get(language)),
            _share(ids, source_V),
        )
    return rows


def _share(ids: Ids, count_V: Counts | None) -> float | None:
    return float(count_V[ids].sum() / count_V.sum()) if count_V is not None and count_V.any() else None


def as_text(rows: Mapping[str, Row], source: tuple[str, ...], measured: bool) -> str:
    """The table of ``xsalt-vocab``, and which languages share the most."""
    name = max([4, *map(len, rows)])
    backend = max([7, *(len(row.backend) for row in rows.values())])
    of_source = f"of {'+'.join(source)}"
    head = f"{'':<{name}} {'ids':>7}  {'backend':<{backend}}"
    head += f"  {'covers':>7} {of_source:>7}" if measured else ""
    lines = [f"{head}  examples"]
    for language, row in rows.items():
        line = f"{language:<{name}} {row.ids:>7,}  {row.backend:<{backend}}"
        line += (
            f"  {_percent(row.coverage):>7} {_percent(row.source_coverage):>{max(7, len(of_source))}}"
            if measured
            else ""
        )
        lines.append(f"{line}  {' '.join(row.examples)}".rstrip())
    names = list(rows)
    pairs = [
        (n / min(rows[a].ids, rows[b].ids), a, b, n)
        for i, a in enumerate(names)
        for b, n in rows[a].shared.items()
        if b in names[i + 1 :] and n
    ]
    if pairs:
        lines += ["", f"shared by{'':<5}{'ids':>7}   of the first   of the second"]
    for _, a, b, n in sorted(pairs, key=lambda pair: -pair[0])[:PAIRS]:
        of_a, of_b = _percent(n / rows[a].ids), _percent(n / rows[b].ids)
        lines.append(f"{f'{a} and {b}':<14}{n:>7,}   {of_a:>12}   {of_b:>13}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def as_json(vocabularies: LanguageVocabularies, rows: Mapping[str, Row]) -> str:
    """The same for programs: every pair of languages, numbers instead of percents."""
    return json.dumps(
        {
            "tokenizer": vocabularies.tokenizer,
            "fingerprint": vocabularies.fingerprint,
            "source": list(vocabularies.source),
            "languages": {language: asdict(row) for language, row in rows.items()},
        },
        indent=2,
        ensure_ascii=False,
    )
