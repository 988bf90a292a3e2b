"""SentencePiece unigram vocabularies as backends of the ``tokenizers`` library: XLM-R's, e5's, ones trained here."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers

from xsalt.errors import UserError
from xsalt.files import read_bytes

FAIRSEQ_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""Ids 0 to 3 of an XLM-R vocabulary; SentencePiece's own first three pieces make way, ``<mask>`` comes last."""
UNK_ID = 3
_UNIGRAM = 1  # TrainerSpec.ModelType in sentencepiece_model.proto

_YOUNGER_THAN_XLM_R = (
    *((0x061C, 0x061C), (0x32FF, 0x32FF), (0xA7F1, 0xA7F4), (0xAB69, 0xAB69), (0x105C0, 0x107BF), (0x11380, 0x113FF)),
    *((0x11900, 0x1195F), (0x16100, 0x1613F), (0x16D40, 0x16D7F), (0x1CC00, 0x1CEBF), (0x1E030, 0x1E08F)),
    *((0x1F16C, 0x1F16C), (0x1F23B, 0x1F23B), (0x1FB00, 0x1FBFF)),
)
"""Characters whose normalisation came into SentencePiece after XLM-R was trained (Unicode 12 and later, and U+061C)."""


def unigram_backend(
    vocabulary: Sequence[tuple[str, float]], charsmap: bytes, words_apart: bool
) -> tokenizers.Tokenizer:
    """A unigram tokenizer of (piece, score) in the order of ids, ``<unk>`` being ``UNK_ID``.

    Args:
        charsmap: SentencePiece's precompiled normalisation.
        words_apart: split at white space first, as SentencePiece itself and XLM-R's ``tokenizer.json`` do; if not, runs
            of spaces are folded but a space at the end counts as a piece, as e5's ``tokenizer.json`` has it.
    """
    backend = tokenizers.Tokenizer(models.Unigram(list(vocabulary), unk_id=UNK_ID, byte_fallback=False))
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if words_apart:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    else:
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
        backend.pre_tokenizer = metaspace
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return backend


def read_model(content: bytes, where: str) -> tokenizers.Tokenizer:
    """An XLM-R ``sentencepiece.bpe.model`` with fairseq's ids: SentencePiece's plus one, ``<mask>`` at the end.

    Raises:
        UserError: if it isn't a SentencePiece model, or not a unigram one (XLM-R's is, whatever its name says).
    """
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError, which has moved between its versions
        raise UserError(f"{where}: not a SentencePiece model: {error}") from error
    if len(model.pieces) < 4:
        raise UserError(f"{where}: not a SentencePiece model: {len(model.pieces)} pieces")
    if model.trainer_spec.model_type != _UNIGRAM:
        raise UserError(f"{where}: a SentencePiece model of another type than unigram, which XLM-R's is")
    first = [piece.piece for piece in model.pieces[:3]]
    if first != ["<unk>", "<s>", "</s>"]:
        raise UserError(f"{where}: begins with the pieces {first}, where an XLM-R model has <unk>, <s>, </s>")
    vocabulary = [(piece, 0.0) for piece in FAIRSEQ_SPECIAL]
    vocabulary += [(piece.piece, piece.score) for piece in model.pieces[3:]]
    vocabulary += [("<mask>", 0.0)]
    return unigram_backend(vocabulary, model.normalizer_spec.precompiled_charsmap, words_apart=True)


@lru_cache(maxsize=1)
def xlm_roberta_charsmap() -> bytes:
    """The ``nmt_nfkc`` normalisation as it was when XLM-R was trained, byte for byte.

    SentencePiece's rules of that name grow with Unicode and once changed (U+200D was a space), so the present ones are
    taken apart and put together again without what is new.
    """
    sentencepiece.set_min_log_level(2)
    young = {chr(c) for low, high in _YOUNGER_THAN_XLM_R for c in range(low, high + 1)}
    rules = dict(sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").Decompile())
    rules = {source: target for source, target in rules.items() if young.isdisjoint(source)}
    rules["\u200d"] = " "
    rebuilt = sentencepiece.SentencePieceNormalizer(norm_map=sorted(rules.items()))
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(rebuilt.serialized_model_proto())
    return bytes(model.normalizer_spec.precompiled_charsmap)


def train_model(texts: Iterable[str], vocab_size: int, seed: int) -> bytes:
    """A SentencePiece unigram model of at most ``vocab_size - 2`` pieces (``<pad>`` and ``<mask>`` come on top).

    A pure function of its arguments: one thread, and the seed where texts beyond 200,000 are sampled.

    Raises:
        UserError: if the texts are too few for any vocabulary.
    """
    lines = [line for line in texts if line.strip()]
    characters = Counter("".join(lines))
    total = sum(characters.values())
    # Half of the vocabulary at most for single characters, or many-lettered scripts would leave no room for words.
    covered = sum(count for _, count in characters.most_common(max((vocab_size - 5) // 2, 1)))
    coverage = min(0.9999, covered / total) if total else 1.0
    sentencepiece.set_random_generator_seed(seed % 2**32)
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            model_type="unigram",
            vocab_size=vocab_size - 2,
            hard_vocab_limit=False,
            character_coverage=coverage,
            normalization_rule_name="nmt_nfkc",
            input_sentence_size=200_000,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"no vocabulary of {vocab_size} pieces can be trained on {len(lines)} lines of text: {reason}"
        ) from error
    return out.getvalue()


def read_file(path: Path) -> tokenizers.Tokenizer:
    """``read_model`` of a file."""
    return read_model(read_bytes(path), str(path))
