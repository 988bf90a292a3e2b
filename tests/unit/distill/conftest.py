from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from xsalt.data.dataset import Dataset, Example, tokenise
from xsalt.models.auto import build_model
from xsalt.models.base import ModelConfig
from xsalt.text.language_vocab import LanguageVocabularies
from xsalt.text.tokenizer import Tokenizer

ENGLISH = ("the", "house", "cat", "dogs", "sleep", "walks", "tree", "small")
FRENCH = ("le", "maison", "chat", "chiens", "dormir", "marche", "arbre", "petit", "rue")
PIECES = ["<s>", "<pad>", "</s>", "<unk>", ".", "▁12", "ing", "ment", *(f"▁{w}" for w in ENGLISH + FRENCH), "<mask>"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    model = tokenizers.models.Unigram([(piece, -float(i > 3)) for i, piece in enumerate(PIECES)], unk_id=3)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return Tokenizer(backend, "xlm-roberta", "test")


@pytest.fixture(scope="session")
def vocabularies(tokenizer: Tokenizer) -> LanguageVocabularies:
    def ids(words: tuple[str, ...]) -> Any:
        return np.array(sorted(PIECES.index(w) for w in words), dtype=np.int32)

    french = ids((*(f"▁{w}" for w in FRENCH), "ment"))
    shared = ids((*(f"▁{w}" for w in FRENCH[:4]), "▁tree"))
    english = ids(tuple(f"▁{w}" for w in ENGLISH))
    return LanguageVocabularies(
        {"en": english, "fr": french, "it": shared},
        dict.fromkeys(("en", "fr", "it"), "corpus"),
        ("en",),
        tokenizer.fingerprint,
    )


@pytest.fixture
def dataset(tokenizer: Tokenizer, tmp_path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    examples = [
        Example(" ".join(rng.choice(ENGLISH, size=5)) + "ing 12 .", " ".join(rng.choice(ENGLISH, size=3)), 0, str(i))
        for i in range(70)
    ]
    return tokenise({"en": examples}, tokenizer, 64, ("en", "fr", "it"), tmp_path)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Callable[..., Any]:
    def make(mlm_head: bool = False, seed: int = 1) -> Any:
        config = ModelConfig(hidden_size=16, layers=3, heads=2, ffn_size=32, max_positions=64)
        return build_model(config, None, tokenizer, (), 0.1, mlm_head, seed)

    return make
