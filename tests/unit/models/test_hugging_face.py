"""Folders as they are found in the wild load alike; whatever does not fit is named, and no code of a file runs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.twins import save, twin
from xsalt.errors import UserError
from xsalt.models.hugging_face import read_config, read_weights
from xsalt.models.pretrained import open_pretrained

State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(twin("bert", "SequenceClassification"), tmp_path / "model")


def _read(folder: Path) -> State:
    architecture, config, _ = read_config(folder)
    return read_weights(folder, architecture, config)


def _change(folder: Path, change: Callable[[State], State]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path)


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _as_bin(folder: Path, content: Any = None, **options: Any) -> None:
    path = folder / "model.safetensors"
    torch.save(load_file(path) if content is None else content, folder / "pytorch_model.bin", **options)
    path.unlink()


def _shards(folder: Path, suffix: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        shard = {name: tensors[name] for name in part}
        if suffix == "safetensors":
            save_file(shard, folder / file)
        else:
            torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def _old_names(tensors: State) -> State:
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        name.replace(end, new[end]) if (end := ".".join(name.split(".")[-2:])) in new else name: t
        for name, t in tensors.items()
    }


VARIANTS: dict[str, Callable[[Path], None]] = {
    "pytorch_model.bin": _as_bin,
    "pytorch_model.bin in the old format": lambda f: _as_bin(f, _use_new_zipfile_serialization=False),
    "safetensors shards": lambda f: _shards(f, "safetensors"),
    "bin shards": lambda f: _shards(f, "bin"),
    "gamma and beta": lambda f: _change(f, _old_names),
    "no prefix": lambda f: _change(f, lambda t: {name.removeprefix("bert."): v for name, v in t.items()}),
    "position_ids": lambda f: _change(f, lambda t: {**t, "bert.embeddings.position_ids": torch.arange(40)[None]}),
    "next-sentence head": lambda f: _change(f, lambda t: {**t, "cls.seq_relationship.weight": torch.zeros(2, 32)}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_a_folder_load_alike(variant: str, folder: Path) -> None:
    expected = {name: tensor.clone() for name, tensor in _read(folder).items()}
    VARIANTS[variant](folder)
    found = _read(folder)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_precision_weights_are_read_as_float32(folder: Path) -> None:
    _change(folder, lambda t: {name: value.half() for name, value in t.items()})
    assert {tensor.dtype for tensor in _read(folder).values()} == {torch.float32}


FAULTS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (
        lambda t: {n: v for n, v in t.items() if "layer.1.output.dense.bias" not in n},
        "missing tensors: encoder.layer.1.output.dense.bias",
    ),
    "extra": (lambda t: {**t, "qa_outputs.weight": torch.zeros(2, 32)}, "unexpected tensors: qa_outputs.weight"),
    "misshapen": (
        lambda t: {**t, "bert.pooler.dense.bias": torch.zeros(31)},
        r"misshapen tensors: pooler.dense.bias is \[31\], expected \[32\]",
    ),
    "half a head": (lambda t: {**t, "cls.predictions.bias": torch.zeros(97)}, "missing tensors: cls.predictions.trans"),
    "not a number": (
        lambda t: {**t, "bert.embeddings.LayerNorm.weight": torch.full((32,), torch.nan)},
        "LayerNorm.weight holds NaN or infinity",
    ),
    "infinite": (
        lambda t: {**t, "classifier.bias": torch.tensor([torch.inf, -torch.inf, 0.0])},
        "classifier.bias holds NaN or infinity",
    ),
    "untied": (
        lambda t: {**t, "cls.predictions.decoder.weight": torch.zeros(97, 32)},
        "cls.predictions.decoder.weight differs from embeddings.word_embeddings.weight",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_that_do_not_fit_are_named_with_their_file(fault: str, folder: Path) -> None:
    change, message = FAULTS[fault]
    _change(folder, change)
    with pytest.raises(UserError, match=f"model.safetensors: .*{message}"):
        _read(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_a_truncated_file_is_named(file: str, keep: int, folder: Path) -> None:
    if file == "pytorch_model.bin":
        _as_bin(folder)
    (folder / file).write_bytes((folder / file).read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{file}: cannot be read"):
        _read(folder)


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["torch file", "bare pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(kind: str, folder: Path, tmp_path: Path) -> None:
    content = {"a": _Payload(tmp_path / "broken-in")}
    _as_bin(folder, content)
    if kind == "bare pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(
        UserError, match=r"pytorch_model.bin: (holds more than tensors and might run code|cannot be read)"
    ):
        _read(folder)
    assert not (tmp_path / "broken-in").exists()


def test_a_bin_file_of_something_else_is_named(folder: Path) -> None:
    _as_bin(folder, {"model": {"a": torch.zeros(1)}})
    with pytest.raises(UserError, match=r"pytorch_model.bin: not a table of named tensors"):
        _read(folder)


def test_a_missing_shard_and_a_missing_weight_file_are_named(folder: Path) -> None:
    _shards(folder, "safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"model-00002-of-00002.safetensors: missing, though model.safetensors.index.json"
    ):
        _read(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"no weights: expected one of model.safetensors"):
        _read(folder)


@pytest.mark.parametrize("target", ["../other.safetensors", 3])
def test_an_index_cannot_point_out_of_its_folder(target: Any, folder: Path) -> None:
    _shards(folder, "safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))
    with pytest.raises(UserError, match="must give a file of this folder"):
        _read(folder)


CONFIG_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported: known: bert, xlm-roberta"),
    ({"model_type": None}, "model_type None is not supported"),
    ({"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'gelu'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
    ({"is_decoder": True}, "is_decoder=True is not supported"),
    ({"hidden_size": "32"}, "hidden_size is '32', expected a whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
    ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
    ({"id2label": {"0": "a", "2": "b"}}, "id2label must name the classes"),
    ({"id2label": {"0": "a", "1": "b"}}, "id2label names 2 classes, the classifier has 3"),
]


@pytest.mark.parametrize(
    ("changes", "message"), CONFIG_FAULTS, ids=lambda x: next(iter(x)) if isinstance(x, dict) else None
)
def test_a_configuration_that_asks_for_something_else_is_refused(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    _change_config(folder, **changes)
    with pytest.raises(UserError, match=f"config.json: {message}"):
        open_pretrained(str(folder), folder)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_a_broken_configuration_is_named(content: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config.json: "):
        open_pretrained(str(folder), folder)


def test_a_path_that_is_no_model_is_refused_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, message in (("absent", "does not exist"), ("file", "is a file"), ("", "neither config.json")):
        with pytest.raises(UserError, match=message):
            open_pretrained(str(tmp_path / name), tmp_path)


def test_labels_and_heads_are_read(folder: Path, tmp_path: Path) -> None:
    classifier = open_pretrained(str(folder), tmp_path)
    assert classifier.labels == ("entailment", "neutral", "contradiction")
    assert (classifier.has_classifier, classifier.has_mlm_head) == (True, False)
    masked = open_pretrained(str(save(twin("xlm-roberta", "MaskedLM"), tmp_path / "m")), tmp_path)
    assert (masked.labels, masked.has_classifier, masked.has_mlm_head) == (None, False, True)
    plain = open_pretrained(str(save(twin("xlm-roberta", "Model"), tmp_path / "p")), tmp_path)
    assert (plain.labels, plain.has_classifier, plain.has_mlm_head) == (None, False, False)
    assert plain.config.max_positions == 38
    assert len({p.fingerprint for p in (classifier, masked, plain)}) == 3
