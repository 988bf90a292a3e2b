from __future__ import annotations

import numpy as np

from xsalt.distill.words import spellings, stands_alone, starts_word_V, whole_words_T
from xsalt.text.tokenizer import Tokenizer


def ids(tokenizer: Tokenizer, *pieces: str) -> np.ndarray:
    return np.array([tokenizer.pieces().index(piece) for piece in pieces])


def test_a_whole_word_is_one_piece_up_to_the_next_word_whatever_punctuation_follows(tokenizer: Tokenizer) -> None:
    corpus = ids(tokenizer, "<s>", "▁house", ".", "▁dogs", "ing", "▁cat", "</s>", "▁tree", "ing", "</s>", "▁cat")
    special = np.isin(corpus, ids(tokenizer, "<s>", "</s>"))
    spelt = np.array([any(map(str.isalnum, piece)) for piece in tokenizer.pieces()])
    starts = starts_word_V(tokenizer.pieces(), tokenizer.word_initial_V)
    whole = whole_words_T(corpus, special, starts, spelt)
    assert np.flatnonzero(whole).tolist() == [1, 5, 10]
    assert whole_words_T(corpus[:0], special[:0], starts, spelt).tolist() == []


def test_pieces_of_scripts_without_spaces_start_words() -> None:
    pieces = ["▁house", "ing", "房子", "บ้าน", "дом", ""]
    starts = starts_word_V(pieces, np.array([piece == "▁house" for piece in pieces]))
    assert starts.tolist() == [True, False, True, True, False, False]


def test_a_piece_stands_alone_if_its_text_is_one_piece(tokenizer: Tokenizer) -> None:
    assert stands_alone(tokenizer, ids(tokenizer, "▁house", "ment", "▁12")).tolist() == [True, False, True]


def test_case_and_marks_make_no_other_spelling() -> None:
    assert spellings(["▁such", "▁Such", "SUCH", "##such", "▁as"]).tolist() == [0, 0, 0, 0, 1]
