"""Keys of self-augmentation that several components share: ``vocabulary.*`` and ``distill.*``."""

from __future__ import annotations

from dataclasses import dataclass

from xsalt.fields import key

THRESHOLD = 0.3
"""Probability from which a substitution is accepted where no one says (assumed)."""
BACKENDS = ("auto", "corpus", "wordfreq", "script", "file")


@dataclass
class VocabularyConfig:
    """Which ids of the tokenizer count as which language. All defaults are assumed: the paper states none."""

    folder: str | None = key(None, "folder that xsalt-vocab wrote: its vocabularies are taken as they are", path=True)
    backend: list[str] = key(
        ["auto"],
        "corpus: counts in text; wordfreq: that package's lists; script: letters; file: your own lists; several: the "
        "mean of what counts, letters as a filter, lists added; auto: the first of file, corpus with script, wordfreq "
        "with script, script that has the language",
        choices=BACKENDS,
    )
    text: str | None = key(None, "folder of plain text for the corpus backend, a file LL.txt a language", path=True)
    files: str | None = key(
        None,
        "folder for the file backend, a file LL.txt a language: a word, or a piece with its mark, a line",
        path=True,
    )
    min_count: int = key(5, "occurrences in the text below which a piece is noise", at_least=1)
    min_frequency: float = key(
        2e-6, "share of all pieces below which a piece of a word list is noise", at_least=0.0, at_most=1.0
    )
    ratio: float = key(
        1.0,
        "a piece belongs to a target language if its frequency there is at least so many times the source's",
        at_least=0.0,
    )
    size: int = key(8000, "ids of a language at most, the most frequent ones, of the backends that count", at_least=1)

    def __post_init__(self) -> None:
        if not self.backend or ("auto" in self.backend and self.backend != ["auto"]):
            raise ValueError(f"backend=[{','.join(self.backend)}]: auto alone, or one or more of the others")


@dataclass
class DistillConfig:
    """How substitutions are scored. All defaults are assumed: the paper states none."""

    method: str = key(
        "auto",
        "mlm: the checkpoint's head; lens: nearest embedding row; anchors: nearest mean state in plain text "
        "(vocabulary.text); auto: mlm where there is a head, else lens",
        choices=("auto", "mlm", "lens", "anchors"),
    )
    layer: int = key(1, "hidden layer that lens and anchors read, 0 the embeddings' output", at_least=0)
    temperature: float = key(
        0.03,
        "of lens and anchors: their probability is softmax(cosine / temperature) over the language's vocabulary",
        above=0.0,
    )
    passages: int = key(12_000, "of anchors: passages of each language's text that are read at most", at_least=1)
    shortlist: int = key(
        32,
        "of the lens: candidates of each source piece and language that are scored in context, 0 scores all",
        at_least=0,
    )
    k: int = key(1, "substitutions kept for a token and language", at_least=1, at_most=64)
    synonyms: bool = key(False, "score the source language too: synonyms, never the token itself")
    whole_words: bool = key(
        False, "words of one piece alone, and by words of one piece alone; pieces of longer words get no substitution"
    )
