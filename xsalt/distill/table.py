"""Builds substitution tables: one pass of the encoder over a corpus scores all target languages at once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xsalt import distributed
from xsalt.config_distill import DistillConfig
from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import (
    SubstitutionTable,
    discard_damaged,
    fingerprint_of,
    new_table,
    table_fingerprint,
)
from xsalt.distill.anchors import SumsFolder, fit_anchors
from xsalt.distill.build import BLOCK, SPAN, Builder, ids_in
from xsalt.distill.parts import Parts, shared_workplace, writable
from xsalt.distill.scoring import Scorer
from xsalt.distill.shortlist import ShortlistScorer
from xsalt.errors import UserError
from xsalt.logging import say
from xsalt.nn.inference import inference
from xsalt.text.language_vocab import LanguageVocabularies
from xsalt.text.tokenizer import Tokenizer

IN_FLIGHT = 32
"""Blocks in memory at once, where no one says: the default of ``batch.size``."""


def pick_method(config: DistillConfig, has_mlm_head: bool) -> str:
    """``mlm``, ``lens`` or ``anchors``. Raises ``UserError`` if a head is asked for that the checkpoint lacks."""
    if config.method == "mlm" and not has_mlm_head:
        raise UserError(
            "distill.method=mlm: the checkpoint has no masked-language-model head: use distill.method=lens or anchors"
        )
    if config.method == "auto":
        return "mlm" if has_mlm_head else "lens"
    return config.method


def target_languages(
    vocabularies: LanguageVocabularies, languages: Sequence[str], source: Sequence[str]
) -> tuple[str, ...]:
    """Languages that tokens may be switched to. Raises ``UserError`` if none has a vocabulary."""
    wanted = tuple(language for language in languages if language not in source)
    targets = tuple(language for language in wanted if len(vocabularies.ids.get(language, ())))
    empty = [language for language in wanted if language in vocabularies.ids and language not in targets]
    if empty:
        say(
            f"warning: the vocabulary of {', '.join(empty)} is empty, so nothing is switched to it: "
            "give plain text with vocabulary.text=DIR, or lower vocabulary.ratio or the least frequency"
        )
    if not wanted:
        raise UserError(
            f"no target language beside the source ({', '.join(source)}): name some with languages=LL,LL, and give "
            "their plain text with vocabulary.text=DIR"
        )
    if not targets:
        raise UserError(
            f"no target language has a vocabulary (asked for: {', '.join(wanted)}): "
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
    in_flight: int = IN_FLIGHT,
    texts: Mapping[str, Dataset] | None = None,
) -> SubstitutionTable:
    """The substitution table of a data set: the one that is there already, or a new one. All ranks build it together.

    Args:
        model: makes the pretrained model, before any fine-tuning; called only if the table has to be built.
        fingerprint: of the model's weights; None hashes those of the model, which then is made in any case.
        has_mlm_head: whether the checkpoint brings a trained masked-language-model head.
        languages, source: target languages are those of ``languages`` that are no source and have a vocabulary.
        cache: the table goes to ``substitutions/FINGERPRINT`` in it.
        in_flight: blocks in memory at once; the table doesn't depend on it.
        texts: plain text by language, of all of them, for ``distill.method=anchors``.

    Raises:
        UserError: if no language has a vocabulary, or the cache can't be written.
    """
    method = pick_method(config, has_mlm_head)
    targets = target_languages(vocabularies, languages, source)
    synonyms = synonym_languages(vocabularies, source) if config.synonyms else ()
    made = model() if fingerprint is None else None
    weights = fingerprint or model_fingerprint(made)
    unused = {
        "mlm": ("layer", "temperature", "shortlist", "passages"),
        "lens": ("passages",),
        "anchors": ("shortlist",),
    }[method]
    settings = {k: v for k, v in asdict(config).items() if k not in unused}
    texts = texts if method == "anchors" else None
    used = (*targets, *synonyms, *(texts or ()))  # hubness of anchors reads those of the source languages too
    key = table_fingerprint(
        {
            "model": weights,
            "tokenizer": tokenizer.fingerprint,
            "dataset": dataset.fingerprint,
            "languages": targets,
            "synonyms": synonyms,
            "vocabularies": {language: _hash(vocabularies.ids[language]) for language in used},
            "settings": {**settings, "method": method, "block": BLOCK, "span": SPAN},
            **({"texts": {name: data.fingerprint for name, data in texts.items()}} if texts else {}),
        }
    )
    place = cache / "substitutions" / key[:32]
    # Only rank 0 looks: a network file system would tell the others of an absent file for some time after it is there.
    table = _good_one(place, key) if distributed.is_first() else None
    if not distributed.from_first(table is not None):
        build_table(
            made or model(),
            tokenizer,
            dataset,
            (*targets, *synonyms),
            vocabularies,
            config,
            method,
            place,
            key,
            synonyms,
            in_flight,
            texts,
            SumsFolder(cache / "anchors", weights),
        )
    return SubstitutionTable.open(place, key) if table is None else table


def _good_one(place: Path, key: str) -> SubstitutionTable | None:
    """The table that the cache has. One that is damaged is moved out of the way, which is said."""
    if not place.exists():
        return None
    try:
        return SubstitutionTable.open(place, key)
    except UserError:
        with writable(place):
            error = discard_damaged(place, key)
        if error is None:  # another process has made it anew meanwhile
            return SubstitutionTable.open(place, key)
        say(f"substitutions are scored anew, the table in the cache is damaged: {error}")
        return None


def synonym_languages(vocabularies: LanguageVocabularies, source: Sequence[str]) -> tuple[str, ...]:
    """Source languages that synonyms may be of. Raises ``UserError`` if one has no vocabulary."""
    for language in source:
        if not len(vocabularies.ids.get(language, ())):
            raise UserError(
                f"distill.synonyms=true: source language {language!r} has no vocabulary: give plain text with "
                "vocabulary.text=DIR, or set distill.synonyms=false"
            )
    return tuple(dict.fromkeys(source))


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
    source: Sequence[str] = (),
    in_flight: int = IN_FLIGHT,
    texts: Mapping[str, Dataset] | None = None,
    sums: SumsFolder | None = None,
) -> None:
    """Scores the whole data set and puts the table at ``folder``, all or nothing. Ranks share the spans, rank 0 merges.

    Killed, it goes on where it was when it is called again. Of two processes with one folder the second waits, and does
    nothing if it finds the table then.

    Args:
        languages: those of the table, in its order; ``source`` those among them that are source languages.
        sums: where those of the anchors are kept; None: beside the parts, as long as the table is being made.

    Raises:
        UserError: if there is nothing to score with, or the folder can't be written.
    """
    if method != "mlm" and config.layer > model.config.layers:
        raise UserError(f"distill.layer={config.layer}: the encoder has hidden layers 0 to {model.config.layers}")
    with writable(folder), shared_workplace(folder) as place:
        if distributed.from_first(distributed.is_first() and fingerprint_of(folder) == fingerprint):
            return
        say(
            f"substitutions: {len(dataset)} examples, {len(languages)} languages ({', '.join(languages)}), "
            f"scored by the model's {_METHODS[method]}"
        )
        for left in place.glob(".*") if distributed.is_first() else ():
            shutil.rmtree(left)  # a table that was being put together when its process was killed
        with inference(model):
            sums = sums or SumsFolder(place, fingerprint)
            anchors = fit_anchors(model, vocabularies, texts, config.layer, sums) if texts else None
            spoken = [dataset.languages[int(index)] for index in np.unique(dataset.language)]
            scorer = Scorer(model, tokenizer, vocabularies, languages, config, method, source, anchors, spoken)
            if not any(len(c.ids_V) for kind in scorer.candidates.values() for c in kind):
                raise UserError("distill.whole_words=true: no piece of any vocabulary is a word: set it to false")
            if method == "lens" and config.shortlist:
                scorer = ShortlistScorer(scorer, tokenizer, ids_in(dataset))
            parts = Parts(place, fingerprint, (len(languages), config.k))
            builder = Builder(scorer, dataset, parts, in_flight)
            builder.build_missing()
        distributed.wait_for_all()
        speed = builder.tokens_per_s()
        if distributed.is_first():
            sizes = {name: len(vocabularies.ids[name]) for name in languages}
            with new_table(folder, len(dataset.ids), languages, config.k, fingerprint, source, place) as table:
                builder.merge(table, scorer.words_V, sizes, speed)
            shutil.rmtree(place)
        distributed.wait_for_all()
    say(f"substitutions: scored at {speed:.0f} tokens/s, kept in {folder}")


_METHODS = {"mlm": "masked-language-model head", "lens": "embedding table (lens)", "anchors": "mean states (anchors)"}
