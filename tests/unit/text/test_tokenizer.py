"""Ids equal those of ``transformers`` for every kind of tokenizer file; bad files are one line."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, trainers

from xsalt.errors import UserError
from xsalt.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from xsalt.text.unigram import unigram_backend, xlm_roberta_charsmap

TEXTS = [
    "The small cat doesn't sleep on the red sofa, does it?",
    "Die kleine Katze schläft nicht auf dem Sofa.",
    "कुत्ता नदी के किनारे दौड़ता है।",
    "猫は赤いソファーで寝ている。",
    "Кошка спит на диване — ﬁne ½ ²",
    "แมวนอนบนโซฟา  two  spaces ",
    "e\u0301te\u0301 \u200bzero\u200d width\u00a0space <s> </s> [SEP]",
    "",
    "x" * 150,
    " ".join(f"w{i}" for i in range(60)),
]


@pytest.fixture(scope="module")
def word_pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like mBERT's, with a vocabulary trained on the texts."""
    folder = tmp_path_factory.mktemp("mbert")
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [w for text in TEXTS[:7] for w in (text, text.lower())]
    backend.train_from_iterator(
        " ".join(words).split(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    )
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in vocabulary), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def sentence_pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like XLM-R's, with a model trained on the texts."""
    folder = tmp_path_factory.mktemp("xlmr")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([t for t in TEXTS[:6] for _ in range(3)]),
        model_writer=out,
        vocab_size=150,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.model").write_bytes(out.getvalue())
    return folder


def ids_of(tokenizer: Tokenizer, first: list[str], second: list[str] | None, max_length: int) -> list[list[int]]:
    encoded = tokenizer.encode(first, second, max_length)
    return [encoded.ids_N[a:b].tolist() for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]


def assert_same(tokenizer: Tokenizer, twin: transformers.PreTrainedTokenizerBase, types: bool = False) -> None:
    pairs = [(a, b) for a in TEXTS for b in TEXTS]
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    for max_length in (7, 16, 64):
        theirs = twin(TEXTS, truncation=True, max_length=max_length)["input_ids"]
        assert ids_of(tokenizer, TEXTS, None, max_length) == theirs
        both = twin(first, second, truncation="longest_first", max_length=max_length, return_token_type_ids=types)
        assert ids_of(tokenizer, first, second, max_length) == both["input_ids"]
        if types:
            flat = [t for row in both["token_type_ids"] for t in row]
            assert tokenizer.encode(first, second, max_length).type_N.tolist() == flat


@pytest.mark.parametrize("lower", [False, True])
def test_vocab_txt_gives_the_ids_and_types_of_transformers(word_pieces: Path, tmp_path: Path, lower: bool) -> None:
    shutil.copy(word_pieces / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    twin = transformers.BertTokenizer.from_pretrained(str(tmp_path), do_lower_case=lower)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.family == "bert"
    assert_same(tokenizer, twin, types=True)


def test_vocab_txt_without_a_configuration_is_cased(word_pieces: Path) -> None:
    twin = transformers.BertTokenizer(str(word_pieces / "vocab.txt"), do_lower_case=False)
    assert_same(load_tokenizer(word_pieces / "vocab.txt"), twin, types=True)


def test_an_xlm_r_model_gives_the_ids_of_transformers_and_of_sentencepiece(sentence_pieces: Path) -> None:
    tokenizer = load_tokenizer(sentence_pieces)
    assert tokenizer.family == "xlm-roberta"
    assert_same(tokenizer, transformers.XLMRobertaTokenizer.from_pretrained(str(sentence_pieces)))
    original = sentencepiece.SentencePieceProcessor(model_file=str(sentence_pieces / "sentencepiece.bpe.model"))
    assert tokenizer.vocab_size == original.get_piece_size() + 2
    for text in TEXTS[:6]:
        # fairseq's ids: SentencePiece's plus one, its <unk> (0) being 3.
        assert tokenizer.tokens(text) == [i + 1 if i else 3 for i in original.encode(text)]


@pytest.mark.parametrize("kind", ["word_pieces", "sentence_pieces"])
def test_a_saved_tokenizer_is_the_same_in_transformers_and_when_loaded(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(kind))
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.family == tokenizer.family
    twin = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert_same(tokenizer, twin, types=kind == "word_pieces")
    for name in ("cls", "sep", "pad", "mask", "unk"):
        assert getattr(twin, f"{name}_token_id") == getattr(tokenizer, f"{name}_id")


def test_the_spelling_of_special_tokens_decides_the_layout_of_pairs_not_the_kind_of_encoder(
    sentence_pieces: Path, tmp_path: Path
) -> None:
    # multilingual-e5 is a BERT with XLM-R's tokenizer
    tokenizer = load_tokenizer(sentence_pieces)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved", "bert")
    assert again.family == "xlm-roberta"
    assert again.fingerprint == tokenizer.fingerprint
    pair = again.encode([TEXTS[0]], [TEXTS[1]], 128)
    twin = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert pair.ids_N.tolist() == twin(TEXTS[0], TEXTS[1])["input_ids"]
    assert pair.ids_N.tolist().count(tokenizer.sep_id) == 3


def test_a_saved_tokenizer_keeps_its_fingerprint_though_json_costs_scores_their_last_bit(tmp_path: Path) -> None:
    # of this many scores some are read back otherwise than they were written
    rows = [(f"▁p{i}", -float(np.float32(7 + i / 997))) for i in range(5000)]
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *rows, ("<mask>", 0.0)]
    tokenizer = Tokenizer(unigram_backend(vocabulary, b"", words_apart=True), "xlm-roberta", "here")
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again._json != tokenizer._json
    assert again.fingerprint == tokenizer.fingerprint
    rows[7] = (rows[7][0], -float(np.nextafter(np.float32(-rows[7][1]), np.float32(100))))
    other = unigram_backend([*vocabulary[:4], *rows, vocabulary[-1]], b"", words_apart=True)
    assert Tokenizer(other, "xlm-roberta", "there").fingerprint != tokenizer.fingerprint


def test_encoding_leaves_the_tokenizer_as_it_was(sentence_pieces: Path) -> None:
    tokenizer = load_tokenizer(sentence_pieces)
    before = tokenizer.tokens(TEXTS[9])
    tokenizer.encode([TEXTS[9]], None, 8)
    assert tokenizer.tokens(TEXTS[9]) == before
    assert tokenizer.fingerprint == load_tokenizer(sentence_pieces).fingerprint


def test_special_tokens_are_marked_and_unknown_ones_are_not(word_pieces: Path) -> None:
    tokenizer = load_tokenizer(word_pieces)
    encoded = tokenizer.encode(["cat ☃"], ["sofa"], 16)
    special = {tokenizer.cls_id, tokenizer.sep_id}
    assert encoded.special_N.tolist() == [i in special for i in encoded.ids_N.tolist()]
    assert tokenizer.unk_id in encoded.ids_N
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}


def test_pieces_that_start_a_word_are_known(word_pieces: Path, sentence_pieces: Path) -> None:
    for folder, starts in (
        (word_pieces, lambda p: not p.startswith("##")),
        (sentence_pieces, lambda p: p.startswith("▁")),
    ):
        tokenizer = load_tokenizer(folder)
        pieces = tokenizer.pieces()
        assert len(pieces) == tokenizer.vocab_size == len(tokenizer.word_initial_V)
        for i, piece in enumerate(pieces):
            assert tokenizer.piece(i) == piece
            assert tokenizer.word_initial_V[i] == (i not in tokenizer.special_ids and starts(piece))


def test_ids_become_text_again(sentence_pieces: Path) -> None:
    tokenizer = load_tokenizer(sentence_pieces)
    assert tokenizer.decode(tokenizer.tokens(TEXTS[0])) == TEXTS[0]


def test_no_texts_give_no_sequences(sentence_pieces: Path) -> None:
    encoded = load_tokenizer(sentence_pieces).encode([], None, 16)
    assert encoded.offsets.tolist() == [0]
    assert len(encoded.ids_N) == len(encoded.type_N) == len(encoded.special_N) == 0


@settings(max_examples=60, deadline=None)
@given(first=st.text(max_size=60), second=st.text(max_size=60), max_length=st.integers(6, 20))
def test_no_sequence_is_longer_than_asked_for(sentence_pieces: Path, first: str, second: str, max_length: int) -> None:
    tokenizer = load_tokenizer(sentence_pieces)
    first, second = (t.encode("utf-8", "ignore").decode() for t in (first, second))
    [ids] = ids_of(tokenizer, [first], [second], max_length)
    a, b = tokenizer.tokens(first), tokenizer.tokens(second)
    assert len(ids) == min(max_length, len(a) + len(b) + 4)
    assert ids[0] == tokenizer.cls_id
    assert ids[-1] == tokenizer.sep_id


def test_a_trained_tokenizer_is_a_function_of_text_and_seed() -> None:
    made = [train_tokenizer(TEXTS * 3, 200, seed=1) for _ in range(2)]
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].vocab_size <= 200
    words = made[0].tokens(TEXTS[0])
    assert made[0].unk_id not in words
    assert 0 < len(words) < len(TEXTS[0])


def test_a_vocabulary_from_no_text_is_a_users_error() -> None:
    with pytest.raises(UserError, match="can be trained on 0 lines"):
        train_tokenizer(["", "  "], 200, seed=1)


def test_the_normalisation_of_xlm_r_is_rebuilt_byte_for_byte() -> None:
    # Its size and a rule that later versions dropped; the e5 twin's test compares all bytes.
    charsmap = xlm_roberta_charsmap()
    assert len(charsmap) == 237_539
    normaliser = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
    assert dict(normaliser.Decompile()).get("\u200d") != " "


MALFORMED = {
    "tokenizer.json": [
        (b"{", "not a tokenizer.json"),
        (b"{}", "not a tokenizer.json"),
        (b"\xff\xfe", "not a tokenizer.json"),
    ],
    "vocab.txt": [
        (b"cat\ndog\n", r"no line \[UNK\]"),
        (b"\xff\n", "not UTF-8"),
        (b"", "the file is empty"),
        (b"[UNK]\n", "CLS"),
    ],
    "sentencepiece.bpe.model": [(b"", "the file is empty"), (b"what is this", "not a SentencePiece model")],
}


@pytest.mark.parametrize(("name", "content", "reason"), [(n, c, r) for n, cases in MALFORMED.items() for c, r in cases])
def test_a_malformed_file_is_named_in_one_line(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        load_tokenizer(tmp_path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_byte_pair_model_is_refused(tmp_path: Path) -> None:
    Backend(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="a BPE tokenizer; only Unigram and WordPiece"):
        load_tokenizer(tmp_path)
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:2]), model_writer=out, vocab_size=40, model_type="bpe", minloglevel=2
    )
    (tmp_path / "x.model").write_bytes(out.getvalue())
    with pytest.raises(UserError, match="another type than unigram"):
        load_tokenizer(tmp_path / "x.model")


def test_a_place_without_a_tokenizer_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer there: tokenizer\.json, vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path / "notes.md")


def test_too_short_a_length_and_too_small_a_table_are_users_errors(sentence_pieces: Path) -> None:
    tokenizer = load_tokenizer(sentence_pieces)
    with pytest.raises(UserError, match="max_length=5 leaves no room"):
        tokenizer.encode(["a"], ["b"], 5)
    tokenizer.check_fits(tokenizer.vocab_size, "model")
    with pytest.raises(UserError, match="has 10 embedding rows"):
        tokenizer.check_fits(10, "checkpoint x")


def test_special_tokens_may_be_spelt_in_the_configuration(word_pieces: Path, tmp_path: Path) -> None:
    pieces = (word_pieces / "vocab.txt").read_text(encoding="utf-8").replace("[CLS]", "<first>")
    (tmp_path / "vocab.txt").write_text(pieces, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"cls_token": {"content": "<first>"}}))
    tokenizer = load_tokenizer(tmp_path, "bert")
    assert tokenizer.family == "bert"
    assert np.array_equal(tokenizer.encode(["cat"], None, 8).ids_N[:1], [tokenizer.cls_id])
    assert tokenizer.piece(tokenizer.cls_id) == "<first>"
