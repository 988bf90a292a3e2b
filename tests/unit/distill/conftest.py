from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.unit.distill import tiny
from xsalt.data.dataset import Dataset
from xsalt.text.language_vocab import LanguageVocabularies
from xsalt.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def vocabularies(tokenizer: Tokenizer) -> LanguageVocabularies:
    return tiny.make_vocabularies(tokenizer)


@pytest.fixture
def dataset(tokenizer: Tokenizer, tmp_path: Path) -> Dataset:
    return tiny.make_dataset(tokenizer, tmp_path)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Callable[..., Any]:
    return partial(tiny.make_model, tokenizer)
