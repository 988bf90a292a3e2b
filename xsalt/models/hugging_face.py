"""Reads Hugging Face folders of the architectures ``bert`` and ``xlm-roberta``: configuration and weights.

Weights come from ``model.safetensors`` (memory-mapped) or ``pytorch_model.bin`` (tensors only: a pickle that would run
code is refused), whole or in shards. Everything that would make the model compute something else is an error.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xsalt.checkpoint import read_json, read_tensors
from xsalt.errors import UserError
from xsalt.files import is_file, is_text
from xsalt.models.base import EncoderModel, check_names_and_shapes
from xsalt.models.bert import Bert
from xsalt.models.names import NAMES, POSITION_BUFFERS, TIED, encoder_names, joined, to_hugging_face
from xsalt.models.xlm_roberta import XLMRoberta
from xsalt.nn.encoder import EncoderConfig

ARCHITECTURES: dict[str, type[EncoderModel]] = {cls.architecture: cls for cls in (Bert, XLMRoberta)}
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MOST, MOST_LAYERS, MOST_LABELS = 1 << 24, 1000, 100_000
"""Bounds on sizes that a configuration may ask for, before anything is built by it."""
NUMBERS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""Types that weights may have."""
_COPIES = 4
"""Times the size of its file that tensors may have in all: tied weights are one storage under several names."""
_ONLY = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def read_config(folder: Path) -> tuple[str, EncoderConfig, tuple[str, ...]]:
    """Architecture, sizes and label names (() if it names none) from ``config.json``.

    Raises ``UserError`` if the file is missing or broken, or asks for something that this encoder does not do.
    """
    path = folder / "config.json"
    raw = read_json(path)
    architecture = raw.get("model_type")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(
            f"{path}: model_type {_short(architecture)} is not supported: known: {', '.join(ARCHITECTURES)}"
        )
    for key, only in _ONLY.items():
        if raw.get(key, only) != only:
            raise UserError(f"{path}: {key}={_short(raw[key])} is not supported, only {only!r}")
    pad_id = _size(raw, "pad_token_id", path, default=0 if architecture == "bert" else 1, least=0)
    offset = 0 if architecture == "bert" else pad_id + 1
    config = EncoderConfig(
        vocab_size=_size(raw, "vocab_size", path),
        hidden_size=_size(raw, "hidden_size", path),
        layers=_size(raw, "num_hidden_layers", path, most=MOST_LAYERS),
        heads=_size(raw, "num_attention_heads", path),
        ffn_size=_size(raw, "intermediate_size", path),
        max_positions=_size(raw, "max_position_embeddings", path, least=offset + 1) - offset,
        type_vocab_size=_size(raw, "type_vocab_size", path, default=2),
        layer_norm_eps=_fraction(raw, "layer_norm_eps", path, 1e-12),
        pad_id=pad_id,
        position_offset=offset,
        dropout=_fraction(raw, "hidden_dropout_prob", path, 0.1),
        attention_dropout=_fraction(raw, "attention_probs_dropout_prob", path, 0.1),
    )
    if config.hidden_size % config.heads:
        raise UserError(
            f"{path}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.heads}"
        )
    return architecture, config, _labels(raw, path)


def _short(value: object) -> str:
    """At most 40 characters of a value that a file gives."""
    return repr(value)[:40]


def _size(
    raw: Mapping[str, Any],
    key: str,
    path: Path,
    default: int | None = None,
    least: int = 1,
    most: int = MOST,
) -> int:
    value = raw.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{path}: {key} is {_short(value)}, expected a whole number from {least} to {most}")
    return value


def _fraction(raw: Mapping[str, Any], key: str, path: Path, default: float) -> float:
    value = raw.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise UserError(f"{path}: {key} is {_short(value)}, expected a number from 0 to below 1")
    return float(value)


def _labels(raw: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = raw.get("id2label") or {}
    if isinstance(names, dict) and len(names) > MOST_LABELS:
        raise UserError(f"{path}: id2label names {len(names)} classes, {MOST_LABELS} at most are supported")
    if not isinstance(names, dict) or sorted(names) != sorted(str(i) for i in range(len(names))):
        raise UserError(f"{path}: id2label must name the classes 0, 1, ... without a gap")
    labels = tuple(str(names[str(i)]) for i in range(len(names)))
    if not all(map(is_text, labels)):
        raise UserError(f"{path}: id2label has a name that is no text (NUL or half of a surrogate pair)")
    return labels


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, an index first. Raises ``UserError`` if there are none or a shard is missing."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder}: no weights: expected one of {', '.join(WEIGHT_FILES)}")
    if found.suffix != ".json":
        return [found]
    weight_map = read_json(found).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(v, str) and Path(v).name == v for v in weight_map.values()
    ):
        raise UserError(f"{found}: weight_map must give a file of this folder for each tensor")
    shards = [folder / name for name in sorted(set(weight_map.values()))]
    for shard in shards:
        if not is_file(shard):
            raise UserError(f"{shard}: missing, though {found.name} names it: copy all shards")
    return [found, *shards]


def _read_bin(path: Path) -> dict[str, Tensor]:
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which are read all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle may raise anything
        reason = next(
            (line for line in str(error).splitlines() if "Unsupported" in line or "global" in line.lower()), ""
        )
        if reason:
            raise UserError(
                f"{path}: holds more than tensors and might run code, so it is not read:"
                " save the weights as model.safetensors"
            ) from error
        raise UserError(
            f"{path}: cannot be read as PyTorch weights, is it complete? ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise UserError(f"{path}: not a table of named tensors: save the model's state_dict()")
    tensors = {str(name): tensor.detach() for name, tensor in content.items()}
    _check_tensors(tensors, path)
    return tensors


def _refuse_compressed(path: Path) -> None:
    """PyTorch stores tensors as they are; what is compressed may unfold to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise UserError(f"{path}: compressed, which PyTorch's own files never are: not read")
    except NotImplementedError as error:  # a later zip than Python reads: what is in it cannot be told
        raise UserError(f"{path}: an archive of a kind that PyTorch never writes: not read") from error
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # an older format, or damaged: PyTorch tells


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises ``UserError`` for tensors that are no plain arrays of numbers, or larger than the file they are in."""
    total = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise UserError(f"{path}: {name[:80]} is no plain tensor: save the weights as model.safetensors")
        total += tensor.numel() * tensor.dtype.itemsize
        if total > _COPIES * path.stat().st_size:
            raise UserError(f"{path}: {name[:80]} is larger than the file: damaged, or made to fill the memory")


def _read_all(files: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        if path.suffix != ".json":
            more = read_tensors(path) if path.suffix == ".safetensors" else _read_bin(path)
            if twice := sorted(more.keys() & tensors.keys()):
                raise UserError(f"{path}: holds {twice[0]}, which another shard holds too")
            tensors |= more
    if files[0].suffix == ".json":
        absent = sorted(set(read_json(files[0])["weight_map"]) - set(tensors))
        if absent:
            raise UserError(f"{files[0]}: names tensors that no shard holds, for instance {absent[0]}")
    return tensors


def _plain_names(tensors: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """Names without prefix, with today's names of LayerNorm, without what carries no weights of its own."""
    names = NAMES[architecture]
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(names.prefix)
        if name.endswith("LayerNorm.gamma"):
            name = name.removesuffix("gamma") + "weight"
        elif name.endswith("LayerNorm.beta"):
            name = name.removesuffix("beta") + "bias"
        if name not in POSITION_BUFFERS and not name.startswith(names.ignored):
            plain[name] = tensor
    return plain


def _untie(plain: dict[str, Tensor], architecture: str, where: Path) -> None:
    """Drops the copies that a tied decoder leaves behind, after checking that they are copies."""
    decoder, decoder_bias = TIED[architecture]
    bias = NAMES[architecture].mlm_head["mlm_head.bias"]
    for copy, original in {decoder: "embeddings.word_embeddings.weight", decoder_bias: bias}.items():
        tensor = plain.pop(copy, None)
        if tensor is not None and not torch.equal(tensor, plain.setdefault(original, tensor)):
            raise UserError(f"{where}: {copy} differs from {original}: only tied decoders are supported")


def read_weights(folder: Path, architecture: str, config: EncoderConfig) -> dict[str, Tensor]:
    """All weights under our names, float32; heads where the folder has them.

    Raises ``UserError`` that names the file and the tensors that are missing, unexpected or misshapen.
    """
    files = weight_files(folder)
    names = NAMES[architecture]
    plain = _plain_names(_read_all(files), architecture)
    _untie(plain, architecture, files[0])
    classes = next(
        (
            len(plain[n])
            for n in names.classifier.values()
            if n.endswith(".weight") and n in plain and len(plain[n].shape)
        ),
        0,
    )
    if architecture == "xlm-roberta" and classes:
        out = plain.get(names.classifier["classifier.out.weight"])
        classes = 1 if out is None else len(out)
    pooler = any(name in plain for name in names.pooler.values())
    head = any(name in plain for name in names.mlm_head.values())
    expected = to_hugging_face(
        blank_state(architecture, config, classes or int(pooler), head), architecture, config.layers, False
    )
    if not classes:
        expected = {name: value for name, value in expected.items() if name not in names.classifier.values()}
    check_names_and_shapes(
        {name: tuple(value.shape) for name, value in expected.items()},
        {name: tuple(value.shape) for name, value in plain.items()},
        str(files[0]),
    )
    check_numbers(plain, str(files[0]))
    state = {ours: joined([plain[name].float() for name in theirs]) for ours, theirs in encoder_names(config.layers)}
    heads = {**names.pooler, **names.classifier, **names.mlm_head}
    return state | {ours: plain[theirs].float() for ours, theirs in heads.items() if theirs in plain}


def check_numbers(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ``UserError`` naming a tensor whose numbers are of no type that weights have, or not all finite."""
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMBERS:
            raise UserError(f"{where}: {name} holds numbers of type {tensor.dtype}, weights are floating-point numbers")
        if not bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
            raise UserError(f"{where}: {name} holds NaN or infinity: the model was saved after its training went wrong")


def blank_state(
    architecture: str, config: EncoderConfig, classes: int, head: bool, pooling: str = "first"
) -> dict[str, Tensor]:
    """Our names and the shapes of their tensors, which hold no data (device ``meta``)."""
    with torch.device("meta"):
        table_VD = torch.empty(config.vocab_size, config.hidden_size)
        model = ARCHITECTURES[architecture](config, table_VD, num_labels=classes, mlm_head=head, pooling=pooling)
    return dict(model.named_parameters())


def hugging_face_config(
    architecture: str, config: EncoderConfig, labels: tuple[str, ...], classes: str
) -> dict[str, Any]:
    """Contents of ``config.json`` for ``transformers``; ``classes`` is the class of model that the folder holds."""
    raw: dict[str, Any] = {
        "architectures": [classes],
        "model_type": architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.max_positions + config.position_offset,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": config.pad_id,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
    }
    if labels:
        raw["id2label"] = {str(i): label for i, label in enumerate(labels)}
        raw["label2id"] = {label: i for i, label in enumerate(labels)}
        raw["problem_type"] = "single_label_classification"
    return raw
