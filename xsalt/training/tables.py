"""What augmented runs need before they train: language vocabularies, and the substitution table of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from xsalt import distributed
from xsalt.batch import IGNORE
from xsalt.config import Composed, component_class
from xsalt.config_distill import DistillConfig
from xsalt.data.dataset import Dataset, Example
from xsalt.data.substitutions import SubstitutionTable
from xsalt.distill import ensure_table
from xsalt.distill.anchors import read_texts
from xsalt.errors import UserError
from xsalt.models.auto import rebuild
from xsalt.protocols import Needs
from xsalt.registry import REGISTRIES
from xsalt.text.language_vocab import LanguageVocabularies
from xsalt.text.vocabulary_backends import build_vocabularies

if TYPE_CHECKING:
    from xsalt.training.run import Setup


def with_augmentation(setup: Setup, needs: Needs, criterions: Mapping[str, Any]) -> Needs:
    """Adds what components ask for: language vocabularies, and the substitution table, which is built on first use."""
    config = setup.config
    tabled = needs.train is not None and any(
        getattr(component_class(REGISTRIES["augmenter"], name), "needs_table", False) for name in config.augmenters
    )
    if not tabled and not any(getattr(cls, "needs_vocabularies", False) for cls in criterions.values()):
        return needs
    vocabularies = vocabularies_of(setup)
    needs = dataclasses.replace(needs, vocabularies=vocabularies)
    if not tabled:
        return needs
    table = substitution_table(setup, cast(Dataset, needs.train), vocabularies, needs.model)
    return dataclasses.replace(needs, table=table)


def distill_options(config: Composed) -> DistillConfig:
    """The keys ``distill.*``, with synonyms where an augmenter asks for some."""
    options = config.train.distill
    asked = any(config.node("augmenter", name).get("synonyms") for name in config.augmenters)
    return dataclasses.replace(options, synonyms=True) if asked else options


def substitution_table(
    setup: Setup, dataset: Dataset, vocabularies: LanguageVocabularies, model: Any = None
) -> SubstitutionTable:
    """A data set's substitutions, scored by the pretrained model as it is (from scratch: by ``model``). Ranks share the
    work, so all must call this."""
    pretrained = setup.pretrained

    def scorer() -> Any:
        """The model before any fine-tuning, with all rows readable."""
        if pretrained is not None:
            return rebuild(pretrained).to(setup.device)
        return setup.model((), mlm_head=False) if model is None else model

    options = distill_options(setup.config)
    texts = plain_texts(setup, vocabularies, options.passages) if options.method == "anchors" else None
    return ensure_table(
        scorer,
        pretrained.fingerprint if pretrained else None,
        pretrained is not None and pretrained.has_mlm_head,
        setup.tokenizer,
        dataset,
        setup.languages,
        setup.source,
        vocabularies,
        options,
        setup.cache,
        setup.config.train.batch.size,
        texts,
    )


def table_of(setup: Setup, dataset: Dataset) -> SubstitutionTable:
    """The table of another data set than the one that is trained on."""
    return substitution_table(setup, dataset, vocabularies_of(setup))


def vocabularies_of(setup: Setup) -> LanguageVocabularies:
    """The language vocabularies of a run; rank 0 counts where they aren't in the cache yet."""
    config = setup.config.train.vocabulary
    with distributed.first_alone():
        return build_vocabularies(setup.tokenizer, setup.languages, setup.source, config, setup.cache)


def plain_texts(setup: Setup, vocabularies: LanguageVocabularies, passages: int) -> dict[str, Dataset]:
    """The first passages of each language's plain text, of those that have a vocabulary."""
    known = [language for language in setup.languages if len(vocabularies.ids.get(language, ()))]
    for language in setup.source:
        if language not in known:
            raise UserError(f"distill.method=anchors: source language {language!r} has no vocabulary, see xsalt-vocab")
    found = {}
    for language, lines in read_texts(setup.config.train.vocabulary.text, known).items():
        examples = [Example(line, None, IGNORE, str(i)) for i, line in enumerate(lines[:passages])]
        found[language] = setup.tokenise({language: examples})
    return found
