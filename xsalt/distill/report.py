"""What can be said of a substitution table: P@1 against lexicons, and switched sentences to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import SubstitutionTable
from xsalt.distill.lexicon import Lexicon, judge, precision_by_decile
from xsalt.distill.tally import count
from xsalt.logging import say
from xsalt.randomness import permutation
from xsalt.text.language_vocab import letters_V
from xsalt.text.tokenizer import Tokenizer


def measure(
    table: SubstitutionTable,
    dataset: Dataset,
    tokenizer: Tokenizer,
    lexicons: Mapping[str, Lexicon],
    source: str,
    threshold: float,
    chrf: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The table's statistics at a threshold, with the figures of ``chrf_of_switching``.

    Each language that has a lexicon gets ``p_at_1`` (None where no word of it occurs), ``p_at_1_n`` and
    ``precision_by_decile``; the last is there for all of them together too. ``source``: the language of the lexicons'
    words, whose sentences alone count.
    """
    stats = table.stats()
    if stats["threshold"] != threshold:
        vocabulary = {language: row["vocabulary"] for language, row in stats["languages"].items()}
        stats |= count(table, dataset, letters_V(tokenizer), threshold).stats(table.languages, vocabulary)
    switched, right = [], []
    for language, lexicon in lexicons.items():
        judged = judge(table, dataset, tokenizer, lexicon, source, language)
        stats["languages"][language] |= {
            "p_at_1": round(judged.right / judged.counted, 4) if judged.counted else None,
            "p_at_1_n": judged.counted,
            "precision_by_decile": precision_by_decile(judged.switched_P, judged.right_P),
        }
        switched.append(judged.switched_P)
        right.append(judged.right_P)
    if lexicons:
        stats["precision_by_decile"] = precision_by_decile(np.sum(switched, axis=0), np.sum(right, axis=0))
    for language, figures in chrf.items():
        stats["languages"][language] |= figures
    return stats


def describe(stats: Mapping[str, Any]) -> str:
    """The statistics as tables for people."""
    header = ("language", "vocabulary", "coverage", "identity", "probability", "P@1", "of", "chrF", "unswitched")
    rows: list[tuple[str, ...]] = [header]
    for language, of_language in stats["languages"].items():
        rows.append(
            (
                language,
                str(of_language["vocabulary"]),
                f"{of_language['coverage']:.3f}",
                f"{of_language['identity']:.3f}",
                f"{of_language['mean_probability']:.3f}",
                "" if of_language.get("p_at_1") is None else f"{of_language['p_at_1']:.3f}",
                str(of_language.get("p_at_1_n", "")),
                str(of_language.get("chrf_switched", "")),
                str(of_language.get("chrf_source", "")),
            )
        )
    shown = _columns(rows) + f"\ncoverage: words with a substitution of probability {stats['threshold']} or more\n"
    deciles = stats.get("precision_by_decile")
    if deciles:
        shown += _columns(
            [
                ("from probability", "precision", "of"),
                *((f"{d['from']:.4f}", f"{d['precision']:.3f}", str(d["n"])) for d in deciles),
            ]
        )
    return shown.rstrip()


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def warn_if_nothing(stats: Mapping[str, Any], table: SubstitutionTable) -> None:
    """Says why no word has an accepted substitution, if none has. ``stats``: of ``measure``."""
    highest = max(row["highest_probability"] for row in stats["languages"].values())
    if highest == 0 or highest < stats["threshold"]:
        say(
            f"warning: no substitution has a probability of {stats['threshold']} or more, so nothing is switched: "
            f"{table.why_nothing()}"
        )


def samples(
    table: SubstitutionTable, dataset: Dataset, tokenizer: Tokenizer, count: int, threshold: float, seed: int
) -> Iterator[str]:
    """Sentences of the corpus, each followed by its switched form in every language: all accepted tokens switched."""
    for example in permutation(seed, 0, "augment/sample", len(dataset))[:count].tolist():
        span = slice(int(dataset.offsets[example]), int(dataset.offsets[example + 1]))
        source = np.asarray(dataset.ids[span])
        word = ~np.asarray(dataset.special[span])
        yield f"{dataset.languages[dataset.language[example]]}  {tokenizer.decode(source[word].tolist())}"
        for index, language in enumerate(table.languages):
            ids, probability = table.ids_NLK[span, index, 0], table.probability_NLK[span, index, 0]
            accepted = (ids >= 0) & (probability.astype(np.float32) >= threshold)
            name = f"{language} (synonyms)" if language in table.source else language
            yield f"{name}  {tokenizer.decode(np.where(accepted, ids, source)[word].tolist())}"
        yield ""
