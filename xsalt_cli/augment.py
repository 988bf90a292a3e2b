"""``xsalt-augment``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xsalt.config import Composed
from xsalt.config_distill import THRESHOLD
from xsalt.fields import key
from xsalt_cli.front import Script, guard, launch


@dataclass
class AugmentOptions:
    """Keys of this script alone."""

    corpus: str = key("train", "what is scored: train, dev, or a file (.txt: a passage a line)", path=True)
    lexicon: str | None = key(
        None,
        "word pairs to measure precision against, from the first source language: a file, or a folder of en-LL.txt",
        path=True,
    )
    threshold: float = key(
        THRESHOLD, "least probability of a substitution that counts as accepted here", at_least=0.0, at_most=1.0
    )
    sample: int = key(0, "sentences to show, switched in every language", at_least=0)
    out: str | None = key(None, "folder for a copy of the table; the cache has it in any case", path=True)


SCRIPT = Script(
    prog="xsalt-augment",
    about="Self-augmentation: the pretrained model scores substitutions for a corpus in every target language.",
    example="xsalt-augment --task xnli corpus=dev sample=3 out=tables/dev",
    extra=AugmentOptions,
    task="xnli",
)


def _augment(composed: Composed) -> int:
    from xsalt.training.augment import augment

    options: AugmentOptions = composed.extra
    return augment(composed, options.corpus, options.lexicon, options.sample, options.threshold, options.out)


def main(argv: Sequence[str] | None = None) -> int:
    return guard(SCRIPT.prog, lambda: launch(SCRIPT, argv, _augment), last=argv is None)
