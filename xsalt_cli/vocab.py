"""``xsalt-vocab``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xsalt.config import Composed
from xsalt.fields import key
from xsalt_cli.front import Script, guard, launch


@dataclass
class VocabOptions:
    """Keys of this script alone."""

    out: str | None = key(None, "folder for the vocabularies, to be used with vocabulary.folder=DIR", path=True)
    examples: int = key(12, "pieces shown of each language", at_least=0)
    coverage: bool = key(False, "measure on the texts of eval.split: share of running word pieces in each vocabulary")
    json: bool = key(False, "print JSON, for programs")


SCRIPT = Script(
    prog="xsalt-vocab",
    about="Language vocabularies: which pieces of the tokenizer count as which language.",
    example="xsalt-vocab languages=fr,de,sw vocabulary.text=my_text out=vocabularies",
    extra=VocabOptions,
    task="xnli",
)


def _vocab(composed: Composed) -> int:
    from xsalt.training.vocabularies import vocab

    options: VocabOptions = composed.extra
    return vocab(composed, options.out, options.examples, options.coverage, options.json)


def main(argv: Sequence[str] | None = None) -> int:
    return guard(SCRIPT.prog, lambda: launch(SCRIPT, argv, _vocab), last=argv is None)
