"""A tiny tokenizer, corpus and model for substitution tables; run as a script it builds a table in a process of its
own: ``tiny.py FOLDER EXAMPLES SPAN SECONDS K``, with a rest of so many seconds after each span."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from xsalt.config_distill import DistillConfig
from xsalt.data.dataset import Dataset, Example, tokenise
from xsalt.distill import build
from xsalt.distill.table import build_table
from xsalt.models.auto import build_model
from xsalt.models.base import ModelConfig
from xsalt.text.language_vocab import LanguageVocabularies
from xsalt.text.tokenizer import Tokenizer

ENGLISH = ("the", "house", "cat", "dogs", "sleep", "walks", "tree", "small")
FRENCH = ("le", "maison", "chat", "chiens", "dormir", "marche", "arbre", "petit", "rue")
PIECES = [
    *("<s>", "<pad>", "</s>", "<unk>", ".", "▁12", "ing", "ment"),
    *(f"▁{w}" for w in ENGLISH + FRENCH),
    *("▁Tree", "<mask>"),
]
LANGUAGES = ("en", "fr", "it")


def make_tokenizer() -> Tokenizer:
    model = tokenizers.models.Unigram([(piece, -float(i > 3)) for i, piece in enumerate(PIECES)], unk_id=3)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return Tokenizer(backend, "xlm-roberta", "test")


def make_vocabularies(tokenizer: Tokenizer) -> LanguageVocabularies:
    def ids(words: tuple[str, ...]) -> Any:
        return np.array(sorted(PIECES.index(w) for w in words), dtype=np.int32)

    french = ids((*(f"▁{w}" for w in FRENCH), "ment"))
    shared = ids((*(f"▁{w}" for w in FRENCH[:4]), "▁tree"))
    english = ids((*(f"▁{w}" for w in ENGLISH), "▁Tree"))
    return LanguageVocabularies(
        {"en": english, "fr": french, "it": shared},
        dict.fromkeys(LANGUAGES, "corpus"),
        ("en",),
        tokenizer.fingerprint,
    )


def make_dataset(tokenizer: Tokenizer, cache: Path, examples: int = 70) -> Dataset:
    rng = np.random.default_rng(0)
    rows = [
        Example(" ".join(rng.choice(ENGLISH, size=5)) + "ing 12 .", " ".join(rng.choice(ENGLISH, size=3)), 0, str(i))
        for i in range(examples)
    ]
    return tokenise({"en": rows}, tokenizer, 64, LANGUAGES, cache)


def make_model(tokenizer: Tokenizer, mlm_head: bool = False, seed: int = 1, width: int = 16) -> Any:
    config = ModelConfig(hidden_size=width, layers=3, heads=2, ffn_size=2 * width, max_positions=64)
    return build_model(config, None, tokenizer, (), 0.1, mlm_head, seed)


def peak_memory_kb() -> int:
    """Since this process's program started; ``getrusage`` would count that of the process that started it too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main(folder: Path, examples: int, span: int, seconds: float, k: int) -> None:
    torch.set_num_threads(1)
    build.SPAN, build.BLOCK = span, min(span, 64)
    score = build.Builder._score

    def slowly(self: Any, *arguments: Any) -> Any:
        time.sleep(seconds)
        print("span", flush=True)
        return score(self, *arguments)

    build.Builder._score = slowly  # type: ignore[method-assign]
    tokenizer = make_tokenizer()
    data = make_dataset(tokenizer, folder / "cache", examples)
    languages, config = ("fr", "it", "en"), DistillConfig(k=k, temperature=0.1)
    before = peak_memory_kb()
    build_table(
        make_model(tokenizer),
        tokenizer,
        data,
        languages,
        make_vocabularies(tokenizer),
        config,
        "lens",
        folder / "table",
        "fingerprint",
        ("en",),
    )
    print("grew", peak_memory_kb() - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
