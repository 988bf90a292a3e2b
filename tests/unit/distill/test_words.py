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
    whole = whole_words_T(corpus, special, starts_word_V(tokenizer), spelt)
    assert np.flatnonzero(whole).tolist() == [1, 5, 10]
    assert whole_words_T(corpus[:0], special[:0], starts_word_V(tokenizer), spelt).tolist() == []


def test_pieces_of_scripts_without_spaces_start_words(tokenizer: Tokenizer) -> None:
    class Other(Tokenizer):
        def __init__(self) -> None:
            self.word_initial_V = np.array([True, False, False, False, False])

        def pieces(self) -> list[str]:
            return ["▁house", "ing", "房子", "บ้าน", "дом"]

    assert starts_word_V(Other()).tolist() == [True, False, True, True, False]


def test_a_piece_stands_alone_if_its_text_is_one_piece(tokenizer: Tokenizer) -> None:
    assert stands_alone(tokenizer, ids(tokenizer, "▁house", "ment", "▁12")).tolist() == [True, False, True]


def test_case_and_marks_make_no_other_spelling(tokenizer: Tokenizer) -> None:
    class Other(Tokenizer):
        def __init__(self) -> None:
            pass

        def pieces(self) -> list[str]:
            return ["▁such", "▁Such", "SUCH", "##such", "▁as"]

    assert spellings(Other()).tolist() == [0, 0, 0, 0, 1]
