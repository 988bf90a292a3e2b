"""What ``xsalt-augment`` and ``xsalt-vocab`` do: the steps before an augmented run, on their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xsalt.batch import IGNORE
from xsalt.config import Composed
from xsalt.data.dataset import Dataset, Example
from xsalt.distill.lexicon import find_lexicons
from xsalt.distill.report import describe, measure, samples, warn_if_nothing
from xsalt.errors import UserError
from xsalt.logging import say
from xsalt.text.language_vocab import THIN, LanguageVocabularies, build_vocabularies, overlaps
from xsalt.text.tokenizer import Tokenizer
from xsalt.training.run import Setup, substitution_table


def augment(config: Composed, corpus: str, lexicon: str | None, sample: int, threshold: float, out: str | None) -> int:
    """Builds or finds the substitution table of a corpus, and reports on it.

    Args:
        corpus: ``train``, ``dev``, or a file in one of the task's formats (``.txt``: a passage a line).
        lexicon: a file or folder of word pairs to measure P@1 against.
        sample: sentences shown, switched in every language.
        threshold: probability from which substitutions count as accepted here.
        out: folder for a copy of the table.
    """
    setup = Setup.open(config)
    dataset = read_corpus(setup, corpus)
    vocabularies = build_vocabularies(
        setup.tokenizer, setup.languages, setup.source, config.train.vocabulary, setup.cache
    )
    lexicons = find_lexicons(Path(lexicon), setup.source[0], _targets(setup)) if lexicon else {}
    table = substitution_table(setup, dataset, vocabularies)
    if out:
        table = table.copy_to(Path(out))
    has_vocabulary = {language: path for language, path in lexicons.items() if language in table.languages}
    told = table.stats()["threshold"]
    stats = measure(table, dataset, setup.tokenizer, has_vocabulary, threshold)
    print(describe(stats))
    if threshold != told:
        warn_if_nothing(stats)
    for line in samples(table, dataset, setup.tokenizer, sample, threshold, config.train.seed):
        print(line)
    say(f"table: {table.folder}")
    return 0


def _targets(setup: Setup) -> tuple[str, ...]:
    return tuple(language for language in setup.languages if language not in setup.source)


def read_corpus(setup: Setup, corpus: str) -> Dataset:
    """The examples to score. Raises ``UserError`` if there are none."""
    if corpus == "train":
        examples = setup.read_train()
    elif corpus == "dev":
        examples = {language: setup.task.read("dev", language) for language in setup.source}
    elif not Path(corpus).is_file():
        raise UserError(f"corpus={corpus}: no such file; write corpus=train, corpus=dev or corpus=FILE")
    elif Path(corpus).suffix == ".txt":
        examples = {setup.source[0]: _read_text(Path(corpus))}
    else:
        examples = setup.task.read_files([corpus], setup.source)
    if not any(examples.values()):
        raise UserError(f"corpus={corpus}: no examples in {', '.join(setup.source)}")
    return setup.tokenise(examples)


def _read_text(path: Path) -> list[Example]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}): convert it first") from error
    return [Example(line.strip(), None, IGNORE, str(i)) for i, line in enumerate(lines) if line.strip()]


def vocab(config: Composed, out: str | None, examples: int) -> int:
    """Builds or finds the language vocabularies, shows them, and writes them to a folder for ``vocabulary.folder``."""
    setup = Setup.open(config)
    vocabularies = build_vocabularies(
        setup.tokenizer, setup.languages, setup.source, config.train.vocabulary, setup.cache
    )
    print(describe_vocabularies(vocabularies, setup.tokenizer, examples))
    if out:
        vocabularies.save(Path(out))
        say(f"vocabularies: {Path(out)} (use them with vocabulary.folder={out})")
    return 0


def describe_vocabularies(vocabularies: LanguageVocabularies, tokenizer: Tokenizer, examples: int) -> str:
    """Sizes, backends, overlaps and a few pieces of each language, and a word on thin ones."""
    pieces = tokenizer.pieces()
    lines = []
    for language, ids in vocabularies.ids.items():
        spread = ids[np.linspace(0, len(ids) - 1, min(examples, len(ids))).astype(np.int64)] if len(ids) else ids
        shown = " ".join(pieces[int(i)] for i in spread)
        thin = "  (thin: give more text)" if len(ids) < THIN else ""
        lines.append(f"{language:<4}{len(ids):>7}  {vocabularies.backends[language]:<9} {shown}{thin}")
    shared = sorted(overlaps(vocabularies).items(), key=lambda item: -item[1])
    if shared and shared[0][1]:
        pairs = ", ".join(f"{a}/{b} {n}" for (a, b), n in shared[:12] if n)
        lines.append(f"shared ids: {pairs}")
    return "\n".join(lines)
