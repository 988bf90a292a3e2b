"""A tokenised data set: flat arrays, memory-mapped from a cache, from which batches are gathered.

Shapes in names: N tokens of the whole data set one after the other, B sequences of a batch, T their packed tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xsalt.batch import Batch, Layout
from xsalt.data.arrays import read_array
from xsalt.data.rows import Example
from xsalt.errors import UserError
from xsalt.files import read_json
from xsalt.logging import say
from xsalt.text.tokenizer import Encoded, Tokenizer

__all__ = ["Dataset", "Example", "tokenise"]

_FORMAT = "1"
"""Part of every cache key: raise it when the arrays or the way to make them change."""


@dataclass(frozen=True)
class Dataset:
    """Tokenised examples. Example i is ``ids[offsets[i]:offsets[i + 1]]``; n examples, N tokens.

    Attributes:
        ids: int32 [N]. offsets: int64 [n + 1]. type: int8 [N]. special: bool [N].
        label: int64 [n]. language: int16 [n], an index into ``languages``. uids: the examples' own names.
        fingerprint: SHA-256 of texts, tokenizer and ``max_length``: what the token arrays are a function of.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    type: npt.NDArray[np.int8]
    special: npt.NDArray[np.bool_]
    label: npt.NDArray[np.int64]
    language: npt.NDArray[np.int16]
    languages: tuple[str, ...]
    uids: list[str]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example, special ones included."""
        return np.diff(self.offsets)

    def batch(self, indices: npt.NDArray[np.integer], seed: int = 0, epoch: int = 0) -> Batch:
        """The examples of these numbers as a batch, in the order given: ``uid_B`` is the numbers themselves."""
        indices = np.asarray(indices, dtype=np.int64)
        lengths_B = self.lengths[indices]
        starts_B = np.cumsum(lengths_B) - lengths_B
        corpus_T = np.arange(int(lengths_B.sum()), dtype=np.int64) + np.repeat(
            self.offsets[indices] - starts_B, lengths_B
        )
        ids_T = torch.from_numpy(self.ids[corpus_T].astype(np.int64))
        return Batch(
            ids_T=ids_T,
            type_T=torch.from_numpy(self.type[corpus_T].astype(np.int64)),
            layout=Layout(lengths_B),
            uid_B=torch.from_numpy(indices.copy()),
            view_B=torch.zeros(len(indices), dtype=torch.int64),
            label_B=torch.from_numpy(self.label[indices]),
            language_T=_int64(np.repeat(self.language[indices], lengths_B)),
            languages=self.languages,
            special_T=torch.from_numpy(np.array(self.special[corpus_T])),
            corpus_T=torch.from_numpy(corpus_T),
            source_ids_T=ids_T,
            seed=seed,
            epoch=epoch,
        )


def _int64(array: npt.NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))


def tokenise(
    examples: Mapping[str, Sequence[Example]],
    tokenizer: Tokenizer,
    max_length: int,
    languages: tuple[str, ...],
    cache: Path,
) -> Dataset:
    """Examples by language to a data set, the languages' examples one after the other in the mapping's order.

    Texts are tokenised once (in the backend's own threads) and kept under ``cache/tokenised``, keyed by the texts, the
    tokenizer and ``max_length``; labels and ids of examples are not part of that.

    Args:
        languages: codes that ``Dataset.language`` indexes; every key of ``examples`` must be among them.

    Raises:
        UserError: if the cache can't be written.
    """
    flat = [example for of_language in examples.values() for example in of_language]
    key = _key(flat, tokenizer, max_length)
    folder = cache / "tokenised" / key
    encoded = _load(folder, len(flat))
    if encoded is None:
        if folder.exists():
            say(f"tokenised anew, what the cache has is damaged: {folder}")
        _store(folder, _encode(flat, tokenizer, max_length))
        encoded = _load(folder, len(flat)) or _encode(flat, tokenizer, max_length)
    counts = [len(of_language) for of_language in examples.values()]
    index = [languages.index(language) for language in examples]
    return Dataset(
        ids=encoded.ids_N,
        offsets=encoded.offsets,
        type=encoded.type_N,
        special=encoded.special_N,
        label=np.fromiter((example.label for example in flat), dtype=np.int64, count=len(flat)),
        language=np.repeat(np.array(index, dtype=np.int16), counts),
        languages=languages,
        uids=[example.uid for example in flat],
        fingerprint=key,
    )


def _key(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, tokenizer.fingerprint, max_length]).encode())
    for start in range(0, len(examples), 4096):
        texts = [(example.first, example.second) for example in examples[start : start + 4096]]
        digest.update(json.dumps(texts, ensure_ascii=False).encode("utf-8"))
    return digest.hexdigest()


def _encode(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> Encoded:
    """Single sentences and pairs may be mixed: each kind is encoded on its own, then put back in order."""
    single = np.array([example.second is None for example in examples], dtype=np.bool_)
    if single.all() or not single.any():
        second = None if single.all() else [example.second or "" for example in examples]
        return tokenizer.encode([example.first for example in examples], second, max_length)
    where = [np.flatnonzero(single), np.flatnonzero(~single)]
    parts = [_encode([examples[int(i)] for i in indices], tokenizer, max_length) for indices in where]
    order = np.argsort(np.concatenate(where), kind="stable")
    starts = np.concatenate([parts[0].offsets[:-1], parts[1].offsets[:-1] + len(parts[0].ids_N)])[order]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    gather_N = np.arange(int(offsets[-1])) + np.repeat(starts - offsets[:-1], lengths)
    ids_N, type_N, special_N = (
        np.concatenate([getattr(part, name) for part in parts])[gather_N] for name in ("ids_N", "type_N", "special_N")
    )
    return Encoded(ids_N, offsets, type_N, special_N)


_ARRAYS = {"ids_N": np.int32, "offsets": np.int64, "type_N": np.int8, "special_N": np.bool_}


def _store(folder: Path, encoded: Encoded) -> None:
    """Writes the arrays and their checksums, all or nothing. Of two processes that write at once, one wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise _no_cache(folder, error) from error
    try:
        sums: dict[str, int] = {}
        for name in _ARRAYS:
            array = getattr(encoded, name)
            np.save(partial / f"{name}.npy", array)
            sums[name] = zlib.crc32(array)
        (partial / "manifest.json").write_text(json.dumps(sums), encoding="utf-8")
        _replace_folder(partial, folder)
    except OSError as error:
        raise _no_cache(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _no_cache(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder.parent}: the cache can't be written ({error.strerror or error}): set XSALT_CACHE to another folder"
    )


def _replace_folder(partial: Path, folder: Path) -> None:
    """Moves a folder into place; one that is there by then stays if it is whole and is moved aside first if not."""
    with contextlib.suppress(OSError):
        os.rename(partial, folder)
        return
    if _load(folder, None) is not None:
        return
    aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
    with contextlib.suppress(FileNotFoundError):  # another process may just have done so
        os.rename(folder, aside / "old")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):  # or have put a whole one there
        os.rename(partial, folder)


def _load(folder: Path, examples: int | None) -> Encoded | None:
    """The arrays, memory-mapped; None if they aren't there or are damaged in any way."""
    try:
        sums = read_json(folder / "manifest.json")
        arrays = {}
        for name, dtype in _ARRAYS.items():
            array = read_array(folder / f"{name}.npy", dtype, 1)
            if zlib.crc32(array.data) != sums[name]:
                return None
            arrays[name] = array
    except (UserError, KeyError):
        return None
    encoded = Encoded(**arrays)
    whole = len(encoded.offsets) > 0 and int(encoded.offsets[-1]) == len(encoded.ids_N)
    return encoded if whole and examples in (None, len(encoded.offsets) - 1) else None
