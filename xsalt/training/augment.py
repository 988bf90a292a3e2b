"""What ``xsalt-augment`` does: the step before an augmented run, on its own."""

from __future__ import annotations

from pathlib import Path

from xsalt import distributed
from xsalt.config import Composed
from xsalt.data.dataset import Dataset
from xsalt.data.rows import read_text
from xsalt.distill.lexicon import find_lexicons, read_lexicon
from xsalt.distill.parts import writable
from xsalt.distill.report import describe, measure, samples, warn_if_nothing
from xsalt.errors import UserError
from xsalt.logging import say
from xsalt.training.quality import chrf_of_dev
from xsalt.training.run import Setup
from xsalt.training.tables import substitution_table, vocabularies_of


def augment(config: Composed, corpus: str, lexicon: str | None, sample: int, threshold: float, out: str | None) -> int:
    """Builds or finds the substitution table of a corpus, and reports on it: ranks build it together, rank 0 reports.

    Args:
        corpus: ``train``, ``dev``, or a file in one of the task's formats (``.txt``: a passage a line).
        lexicon: a file or folder of word pairs to measure P@1 against, from the first source language.
        sample: sentences shown, switched in every language.
        threshold: probability from which substitutions count as accepted here.
        out: folder for a copy of the table.
    """
    setup = Setup.open(config, evaluated=False)
    dataset = read_corpus(setup, corpus)
    vocabularies = vocabularies_of(setup)
    files = find_lexicons(Path(lexicon), setup.source[0], _targets(setup)) if lexicon else {}
    lexicons = {language: read_lexicon(path) for language, path in files.items()}  # before the long work
    table = substitution_table(setup, dataset, vocabularies)
    if not distributed.is_first():
        return 0
    has_vocabulary = {language: found for language, found in lexicons.items() if language in table.languages}
    chrf = chrf_of_dev(setup, table, dataset, threshold) if corpus == "dev" else {}
    stats = measure(table, dataset, setup.tokenizer, has_vocabulary, setup.source[0], threshold, chrf)
    if out:
        with writable(Path(out)):
            table = table.copy_to(Path(out))
            table.write_stats(stats)
    print(describe(stats))
    warn_if_nothing(stats, table)
    for line in samples(table, dataset, setup.tokenizer, sample, threshold, config.train.seed):
        print(line)
    setup.tell_skipped()
    say(f"table: {table.folder}")
    return 0


def _targets(setup: Setup) -> tuple[str, ...]:
    return tuple(language for language in setup.languages if language not in setup.source)


def read_corpus(setup: Setup, corpus: str) -> Dataset:
    """The examples to score. Raises ``UserError`` if there are none."""
    if corpus == "train":
        examples = setup.read_train()
    elif corpus == "dev":
        examples = {language: setup.examples("dev", language) for language in setup.source}
    elif not Path(corpus).is_file():
        raise UserError(f"corpus={corpus}: no such file; write corpus=train, corpus=dev or corpus=FILE")
    elif Path(corpus).suffix == ".txt":
        examples = {setup.source[0]: read_text(Path(corpus), setup.task.log)}
    else:
        examples = setup.task.read_files([corpus], setup.source)
    if not any(examples.values()):
        raise UserError(f"corpus={corpus}: no examples in {', '.join(setup.source)}")
    return setup.tokenise(examples)
