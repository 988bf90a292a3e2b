"""What can be said of a substitution table: P@1 against lexicons, and switched sentences to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import STATS, SubstitutionTable, write_json
from xsalt.distill.lexicon import p_at_1, read_lexicon
from xsalt.randomness import permutation
from xsalt.text.tokenizer import Tokenizer


def measure(
    table: SubstitutionTable,
    dataset: Dataset,
    tokenizer: Tokenizer,
    lexicons: Mapping[str, Path],
    chrf: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The table's statistics with ``p_at_1`` for each language that has a lexicon, and with the figures of
    ``chrf_of_switching``; written to ``stats.json`` too."""
    stats = table.stats()
    ids, special = np.asarray(dataset.ids), np.asarray(dataset.special)
    for language, path in lexicons.items():
        share, n = p_at_1(table, ids, special, tokenizer, read_lexicon(path), language)
        stats["languages"][language] |= {"p_at_1": round(share, 4), "p_at_1_n": n}
    for language, figures in chrf.items():
        stats["languages"][language] |= figures
    write_json(table.folder / STATS, stats)
    return stats


def describe(stats: Mapping[str, Any]) -> str:
    """The statistics as a table for people."""
    header = ("language", "vocabulary", "coverage", "probability", "P@1", "of", "chrF", "unswitched")
    rows = [header]
    for language, of_language in stats["languages"].items():
        rows.append(
            (
                language,
                str(of_language["vocabulary"]),
                f"{of_language['coverage']:.3f}",
                f"{of_language['mean_probability']:.3f}",
                f"{of_language['p_at_1']:.3f}" if "p_at_1" in of_language else "",
                str(of_language.get("p_at_1_n", "")),
                str(of_language.get("chrf_switched", "")),
                str(of_language.get("chrf_source", "")),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


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
            yield f"{language}  {tokenizer.decode(np.where(accepted, ids, source)[word].tolist())}"
        yield ""
