"""Builds substitution tables: one pass of the encoder over a corpus scores all target languages at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xsalt.config_distill import DistillConfig
from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import MANIFEST, SubstitutionTable, new_table, table_fingerprint
from xsalt.distill.scoring import Scorer
from xsalt.distill.shortlist import ShortlistScorer
from xsalt.errors import UserError
from xsalt.logging import Progress, say
from xsalt.nn.inference import inference
from xsalt.text.language_vocab import LanguageVocabularies
from xsalt.text.tokenizer import Tokenizer

BLOCK = 64
"""Examples encoded together. Blocks are cut in the corpus's order and never otherwise: the width of a batch changes
the last bits of its results, and a table must not depend on how it was computed."""

SPAN = 2048
"""Examples whose tokens are scored together: a multiple of BLOCK."""


def pick_method(config: DistillConfig, has_mlm_head: bool) -> str:
    """``mlm`` or ``lens``. Raises ``UserError`` if a head is asked for that the checkpoint lacks."""
    if config.method == "mlm" and not has_mlm_head:
        raise UserError("distill.method=mlm: the checkpoint has no masked-language-model head: use distill.method=lens")
    if config.method == "auto":
        return "mlm" if has_mlm_head else "lens"
    return config.method


def target_languages(
    vocabularies: LanguageVocabularies, languages: Sequence[str], source: Sequence[str]
) -> tuple[str, ...]:
    """Languages that tokens may be switched to. Raises ``UserError`` if none has a vocabulary."""
    targets = tuple(
        language for language in languages if language not in source and len(vocabularies.ids.get(language, ()))
    )
    if not targets:
        raise UserError(
            f"no target language has a vocabulary (asked for: {', '.join(languages) or 'none'}): "
            "name some with languages=[...] and give plain text with vocabulary.text=DIR"
        )
    return targets


def model_fingerprint(model: Any) -> str:
    """SHA-256 over all weights, for models that come from no checkpoint."""
    digest = hashlib.sha256()
    for name, value in sorted(model.whole_state().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def ensure_table(
    model: Callable[[], Any],
    fingerprint: str | None,
    has_mlm_head: bool,
    tokenizer: Tokenizer,
    dataset: Dataset,
    languages: Sequence[str],
    source: Sequence[str],
    vocabularies: LanguageVocabularies,
    config: DistillConfig,
    cache: Path,
) -> SubstitutionTable:
    """The substitution table of a data set: the one that is there already, or a new one.

    Args:
        model: makes the pretrained model, before any fine-tuning; called only if the table has to be built.
        fingerprint: of the model's weights; None hashes those of the model, which then is made in any case.
        has_mlm_head: whether the checkpoint brings a trained masked-language-model head.
        languages, source: target languages are those of ``languages`` that are no source and have a vocabulary.
        cache: the table goes to ``substitutions/FINGERPRINT`` in it.

    Raises:
        UserError: if no language has a vocabulary, or the table there is damaged.
    """
    method = pick_method(config, has_mlm_head)
    targets = target_languages(vocabularies, languages, source)
    made = model() if fingerprint is None else None
    settings = {
        k: v for k, v in asdict(config).items() if method == "lens" or k not in ("layer", "temperature", "shortlist")
    }
    key = table_fingerprint(
        {
            "model": fingerprint or model_fingerprint(made),
            "tokenizer": tokenizer.fingerprint,
            "dataset": dataset.fingerprint,
            "languages": targets,
            "vocabularies": {language: _hash(vocabularies.ids[language]) for language in targets},
            "settings": {**settings, "method": method, "block": BLOCK, "span": SPAN},
        }
    )
    place = cache / "substitutions" / key[:32]
    if not (place / MANIFEST).is_file():
        build_table(made or model(), tokenizer, dataset, targets, vocabularies, config, method, place, key)
    return SubstitutionTable.open(place, key)


def _hash(ids: npt.NDArray[np.int32]) -> str:
    return hashlib.sha256(ids.tobytes()).hexdigest()


def build_table(
    model: Any,
    tokenizer: Tokenizer,
    dataset: Dataset,
    languages: Sequence[str],
    vocabularies: LanguageVocabularies,
    config: DistillConfig,
    method: str,
    folder: Path,
    fingerprint: str,
) -> None:
    """Scores the whole data set and puts the table at ``folder``, all or nothing."""
    if method == "lens" and config.layer > model.config.layers:
        raise UserError(f"distill.layer={config.layer}: the encoder has hidden layers 0 to {model.config.layers}")
    say(f"substitutions: {len(dataset)} examples, {len(languages)} languages, scored by the model's {_METHODS[method]}")
    progress = Progress(len(dataset), "substitutions", "example")
    began = time.monotonic()
    with inference(model), new_table(folder, len(dataset.ids), languages, config.k, fingerprint) as table:
        scorer = Scorer(model, tokenizer, vocabularies, languages, config, method)
        if method == "lens" and config.shortlist:
            scorer = ShortlistScorer(scorer, tokenizer, np.unique(dataset.ids))
        for start in range(0, len(dataset), SPAN):
            stop = min(start + SPAN, len(dataset))
            queries = []
            for first in range(start, stop, BLOCK):
                indices = np.arange(first, min(first + BLOCK, stop))
                queries.append(scorer.queries(dataset.batch(indices, seed=0, epoch=0).to(scorer.device)))
            tokens = slice(int(dataset.offsets[start]), int(dataset.offsets[stop]))
            ids_T, special_T = np.asarray(dataset.ids[tokens]), np.asarray(dataset.special[tokens])
            table.ids_NLK[tokens], table.probability_NLK[tokens] = scorer.score(ids_T, special_T, torch.cat(queries))
            progress.step(stop - start)
        word_N = scorer.scored(np.asarray(dataset.ids), np.asarray(dataset.special))
        table.stats = {
            "languages": {
                language: {
                    "vocabulary": len(vocabularies.ids[language]),
                    **_coverage(dataset, word_N, table.ids_NLK[:, i, 0], table.probability_NLK[:, i, 0]),
                }
                for i, language in enumerate(languages)
            },
            "tokens": len(dataset.ids),
            "tokens_per_s": round(len(dataset.ids) / max(1e-9, time.monotonic() - began), 1),
            "fingerprint": fingerprint,
        }
    progress.close()
    say(f"substitutions: {len(dataset.ids)} tokens at {table.stats['tokens_per_s']:.0f} tokens/s, kept in {folder}")


_METHODS = {"mlm": "masked-language-model head", "lens": "embedding table (lens)"}
COVERAGE_THRESHOLD = 0.3
"""Probability from which ``stats.json`` counts a token as covered: the default threshold of code-switching."""


def _coverage(
    dataset: Dataset,
    word_N: npt.NDArray[np.bool_],
    ids_N: npt.NDArray[np.int32],
    probability_N: npt.NDArray[np.float16],
) -> dict[str, float]:
    """Share of word tokens with an accepted substitution other than themselves, and mean probability of the best
    one."""
    accepted_N = (ids_N >= 0) & (ids_N != dataset.ids) & (probability_N.astype(np.float32) >= COVERAGE_THRESHOLD)
    words = max(1, int(word_N.sum()))
    return {
        "coverage": round(float(accepted_N[word_N].sum()) / words, 4),
        "mean_probability": round(float(probability_N[word_N].astype(np.float64).sum()) / words, 4),
    }
