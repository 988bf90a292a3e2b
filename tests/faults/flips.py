"""Files that we write ourselves and read back: a flipped bit or a cut is refused, repaired, or changes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.distill.tiny import ENGLISH, LANGUAGES, make_dataset, make_model, make_tokenizer, make_vocabularies
from xsalt import checkpoint
from xsalt.config_distill import DistillConfig, VocabularyConfig
from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import SubstitutionTable
from xsalt.distill import ensure_table
from xsalt.errors import UserError
from xsalt.models.auto import rebuild, save_model
from xsalt.models.pretrained import open_pretrained
from xsalt.text.language_vocab import LanguageVocabularies
from xsalt.text.vocabulary_backends import build_vocabularies


def digest(*parts: Any) -> str:
    """SHA-256 over arrays bit by bit, and over everything else as it is written."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            made.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        else:
            made.update(repr(part).encode())
    return made.hexdigest()


@dataclass(frozen=True)
class Subject:
    """Something that is written once and read often.

    Attributes:
        make: writes it below a folder; what it gives is handed to ``read``.
        read: all that anyone gets to see of it, as a digest.
        heals: a cache: what is damaged is made anew, which is said, and never refused.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path, Any], str]
    heals: bool = False


def make_checkpoint(folder: Path) -> None:
    import torch

    model = make_model(make_tokenizer(), mlm_head=True, width=8)
    save_model(
        folder / "last", model, make_tokenizer(), (), {"m": torch.arange(9.0)}, {"update": 3}, {"run.yaml": "seed: 1\n"}
    )


def read_checkpoint(folder: Path, _: Any) -> str:
    tensors, state = checkpoint.load_checkpoint(folder / "last")
    opened = open_pretrained(str(folder / "last"), folder / "cache")
    arrays = [
        (f"{file} {name}", value.numpy())
        for file, of_file in sorted(tensors.items())
        for name, value in sorted(of_file.items())
    ]
    weights = [value.detach().numpy() for value in rebuild(opened).whole_state().values()]
    plain = (opened.config, opened.labels, opened.pooling, opened.mlm_layer, opened.mlm_activation, state)
    return digest(opened.tokenizer().fingerprint, plain, *(part for pair in arrays for part in pair), *weights)


def table_digest(table: SubstitutionTable) -> str:
    stats = {name: value for name, value in table.stats().items() if name != "tokens_per_s"}
    plain = (table.fingerprint, table.languages, table.source, stats)
    return digest(np.array(table.ids_NLK), np.array(table.probability_NLK), plain)


def make_table(folder: Path) -> Dataset:
    dataset = make_dataset(make_tokenizer(), folder.parent / "tokenised", 20)
    cached_table(folder, dataset)
    return dataset


def cached_table(folder: Path, dataset: Dataset) -> str:
    tokenizer = make_tokenizer()
    vocabularies, config = make_vocabularies(tokenizer), DistillConfig(k=2)
    table = ensure_table(
        lambda: make_model(tokenizer),
        "f",
        False,
        tokenizer,
        dataset,
        LANGUAGES,
        ("en",),
        vocabularies,
        config,
        folder,
    )
    return table_digest(table)


def given_table(folder: Path, _: Any) -> str:
    return table_digest(SubstitutionTable.open(next((folder / "substitutions").iterdir())))


def vocabulary_digest(found: LanguageVocabularies) -> str:
    ids = [part for name, of_name in sorted(found.ids.items()) for part in (name, of_name)]
    return digest(found.fingerprint, found.source, sorted(found.backends.items()), *ids)


def given_vocabulary(folder: Path, _: Any) -> str:
    return vocabulary_digest(LanguageVocabularies.load(folder, make_tokenizer()))


def cached_vocabulary(folder: Path, _: Any) -> str:
    text = folder.parent / "text"
    text.mkdir(exist_ok=True)
    for language in ("en", "fr"):
        (text / f"{language}.txt").write_text(" ".join(ENGLISH) + "\n")
    config = VocabularyConfig(text=str(text), min_count=1)
    return vocabulary_digest(build_vocabularies(make_tokenizer(), ("fr",), ("en",), config, folder))


def cached_tokens(folder: Path, _: Any) -> str:
    data = make_dataset(make_tokenizer(), folder, 20)
    return digest(*(np.array(array) for array in (data.ids, data.offsets, data.type, data.special)), data.fingerprint)


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("checkpoint", make_checkpoint, read_checkpoint),
        Subject("table", make_table, given_table),
        Subject("cached table", make_table, cached_table, heals=True),
        Subject("vocabulary", lambda folder: make_vocabularies(make_tokenizer()).save(folder), given_vocabulary),
        Subject("cached vocabulary", lambda folder: cached_vocabulary(folder, None), cached_vocabulary, heals=True),
        Subject("token cache", lambda folder: cached_tokens(folder, None), cached_tokens, heals=True),
    )
}


@dataclass(frozen=True)
class Flip:
    """What came of one damaged file.

    Attributes:
        end: ``refused`` (by name), ``healed`` (made anew, and said), ``harmless`` (the very same result), or ``fault``.
    """

    file: str
    damage: str
    end: str
    reason: str = ""


def damages(rng: random.Random, raw: bytes) -> tuple[str, bytes]:
    """A flipped bit, or a cut anywhere, as likely."""
    at = rng.randrange(len(raw))
    if rng.random() < 0.5:
        return f"cut to {at} of {len(raw)} bytes", raw[:at]
    bit = rng.randrange(8)
    return f"bit {bit} of byte {at}", raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


def trials(subject: Subject, folder: Path, seed: int) -> Iterator[Flip]:
    """Damages the files of a subject in turn, for ever."""
    made = subject.make(folder)
    whole = subject.read(folder, made)
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    names = list(files)
    for number in range(1 << 30):
        rng = random.Random(f"{subject.name} {seed} {number}")
        path = names[number % len(names)]
        damage, raw = damages(rng, files[path])
        path.write_bytes(raw)
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            flip = judge(subject, folder, made, whole, path, damage)
        if flip.end == "harmless" and subject.heals and "damaged" in told.getvalue():
            flip = replace(flip, end="healed")
            if [p for p in folder.rglob("*") if ".damaged" in p.name]:
                flip = replace(flip, end="fault", reason="leaves rubbish behind")
        yield flip
        if sorted(p for p in folder.rglob("*") if p.is_file()) != names:  # a table made anew is another folder's
            shutil.rmtree(folder)
        for there, content in files.items():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(content)


def judge(subject: Subject, folder: Path, made: Any, whole: str, path: Path, damage: str) -> Flip:
    name = str(path.relative_to(folder))
    try:
        found = subject.read(folder, made)
    except UserError as error:
        if subject.heals or "\n" in str(error) or str(folder) not in str(error):
            return Flip(name, damage, "fault", f"refused: {error}")
        return Flip(name, damage, "refused", str(error))
    except Exception as error:
        return Flip(name, damage, "fault", f"{type(error).__name__}: {error}")
    return Flip(name, damage, "harmless" if found == whole else "fault", "" if found == whole else "another result")
