"""Builds the model of a run from its configuration, a pretrained encoder and a tokenizer, and checks that they fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from xsalt import checkpoint
from xsalt.errors import UserError
from xsalt.logging import say
from xsalt.models.base import EncoderModel, ModelConfig, with_dropout
from xsalt.models.pretrained import Pretrained, checkpoint_config
from xsalt.nn.encoder import EncoderConfig
from xsalt.registry import MODELS

if TYPE_CHECKING:
    from xsalt.text.tokenizer import Tokenizer


SIZES = ("hidden_size", "layers", "heads", "ffn_size", "max_positions")
"""Keys that a model trained from scratch has its sizes from."""


class Auto:
    """The architecture of the pretrained checkpoint; from scratch, the one whose tokenizer is used."""

    Config: ClassVar[type] = ModelConfig


def build_model(
    model_config: ModelConfig,
    pretrained: Pretrained | None,
    tokenizer: Tokenizer,
    labels: Sequence[str],
    dropout: float,
    mlm_head: bool,
    seed: int,
) -> EncoderModel:
    """A model ready to train: weights from ``pretrained``, new parts drawn from N(0, 0.02**2) with ``seed``.

    A pretrained classifier is taken over if it has the same classes (in any order) and the same pooling, a pretrained
    head if one is asked for; ``model.new_parts`` names what is new. The word table is shared with ``pretrained``, never
    written to.

    Raises ``UserError`` if model name, tokenizer and checkpoint don't fit each other.
    """
    cls = _model_class(model_config, pretrained, tokenizer)
    if pretrained is None:
        config = _scratch_config(model_config, cls, tokenizer, dropout)
        table_VD, state = torch.zeros(config.vocab_size, config.hidden_size), {}
    else:
        _check_sizes(model_config, pretrained)
        config = with_dropout(pretrained.config, dropout)
        tokenizer.check_fits(config.vocab_size, pretrained.source)
        state = pretrained.state()
        table_VD = state["embeddings.word.weight"]
    mlm_layer = model_config.mlm_layer
    if mlm_layer is None and pretrained is not None and pretrained.has_mlm_head:
        mlm_layer = pretrained.mlm_layer
    activation = model_config.mlm_activation
    if activation is None:
        activation = pretrained.mlm_activation if pretrained is not None and pretrained.has_mlm_head else "gelu"
    model = cls(
        config,
        table_VD,
        num_labels=len(labels),
        pooling=model_config.pooling,
        mlm_head=mlm_head,
        mlm_layer=mlm_layer,
        mlm_activation=activation,
        reload=pretrained.reload_table if pretrained is not None else None,
    )
    order = match_classes(pretrained.labels, labels) if pretrained is not None and pretrained.labels else None
    taken = _parts_to_take(model, pretrained, state, order is not None)
    if taken:
        model.load_whole_state(state, taken)
    if "classifier.out" in taken and pretrained is not None:
        reorder_classes(model, pretrained, labels)
    parts = [p for p in _parts(model) if p not in taken]
    if parts:
        model.initialise(parts, seed)
    return model


def _model_class(model_config: ModelConfig, pretrained: Pretrained | None, tokenizer: Tokenizer) -> type[EncoderModel]:
    name = model_config.name
    if name == "auto":
        name = pretrained.architecture if pretrained is not None else tokenizer.family
    cls: type[EncoderModel] = MODELS.get(name)
    if pretrained is not None and cls.architecture != pretrained.architecture:
        raise UserError(
            f"--model {name} does not fit {pretrained.source}, which is of the architecture"
            f" {pretrained.architecture}: use --model auto"
        )
    return cls


def _check_sizes(model_config: ModelConfig, pretrained: Pretrained) -> None:
    """Sizes are those of the checkpoint. Raises ``UserError`` for one that was asked to be another."""
    for key in SIZES:
        asked, there = getattr(model_config, key), getattr(pretrained.config, key)
        if asked not in (there, getattr(ModelConfig, key)):
            raise UserError(
                f"model.{key}={asked}: {pretrained.source} has {there}: leave it out, or train from scratch with "
                "pretrained=null"
            )


def _scratch_config(
    model_config: ModelConfig, cls: type[EncoderModel], tokenizer: Tokenizer, dropout: float
) -> EncoderConfig:
    for key in SIZES:
        if getattr(model_config, key) < 1:
            raise UserError(f"model.{key}={getattr(model_config, key)} must be at least 1")
    if model_config.hidden_size % model_config.heads:
        raise UserError(
            f"model.hidden_size={model_config.hidden_size} is not a multiple of model.heads={model_config.heads}"
        )
    bert = cls.architecture == "bert"
    return EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=model_config.hidden_size,
        layers=model_config.layers,
        heads=model_config.heads,
        ffn_size=model_config.ffn_size,
        max_positions=model_config.max_positions,
        type_vocab_size=2 if bert else 1,
        layer_norm_eps=1e-12 if bert else 1e-5,
        pad_id=tokenizer.pad_id,
        position_offset=0 if bert else tokenizer.pad_id + 1,
        dropout=dropout,
        attention_dropout=dropout,
    )


def _parts(model: EncoderModel) -> list[str]:
    heads = ["classifier.dense"] if model.num_labels and model.pooling == "first" else []
    heads += ["classifier.out"] if model.num_labels else []
    heads += ["mlm_head"] if model.mlm_head is not None else []
    return ["embeddings", "encoder", *heads]


def _parts_to_take(
    model: EncoderModel, pretrained: Pretrained | None, state: Mapping[str, Tensor], same_classes: bool
) -> list[str]:
    if pretrained is None:
        return []
    taken = ["embeddings", "encoder"]
    head = (pretrained.mlm_layer, pretrained.mlm_activation)
    if pretrained.has_mlm_head and model.mlm_head is not None and head == (model.mlm_layer, model.mlm_activation):
        taken.append("mlm_head")
    if model.num_labels and model.pooling == pretrained.pooling:
        if "classifier.dense.weight" in state:
            taken.append("classifier.dense")
        if pretrained.has_classifier and same_classes:
            taken.append("classifier.out")
    return taken


def match_classes(given: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """For each wanted class its number among those given, whatever their case; None if they are other classes.

    Classes without names (``LABEL_0`` ...) are taken to be the wanted ones, in their order, if there are as many.
    """
    names = [name.lower() for name in given]
    if len(given) == len(wanted) and all(name.startswith("label_") for name in names):
        return list(range(len(wanted)))
    if sorted(names) != sorted(name.lower() for name in wanted):
        return None
    return [names.index(name.lower()) for name in wanted]


def reorder_classes(model: EncoderModel, pretrained: Pretrained, wanted: Sequence[str]) -> None:
    """Puts the rows of the pretrained classifier, as ``model`` has them, into the wanted order of classes.

    Raises ``UserError`` if the classes are others.
    """
    given, where = pretrained.labels or (), pretrained.source
    order = match_classes(given, wanted)
    if order is None:
        raise UserError(f"{where}: its classes are {', '.join(given)}; the task's are {', '.join(wanted)}")
    if {name.lower() for name in given} != {name.lower() for name in wanted}:
        say(f"warning: {where} does not name its classes: taken to be {', '.join(wanted)}, in this order")
    assert model.classifier is not None
    out = model.classifier.out
    with torch.no_grad():
        out.weight.copy_(out.weight[order].clone())
        out.bias.copy_(out.bias[order].clone())


def rebuild(pretrained: Pretrained) -> EncoderModel:
    """The model as it was saved, all its heads included (for evaluation, prediction and conversion)."""
    state = pretrained.state()
    model = MODELS.get(pretrained.architecture)(
        pretrained.config,
        state["embeddings.word.weight"],
        num_labels=len(pretrained.labels or ()),
        pooling=pretrained.pooling,
        mlm_head=pretrained.has_mlm_head,
        mlm_layer=pretrained.mlm_layer,
        mlm_activation=pretrained.mlm_activation,
    )
    if not pretrained.labels:  # a pooler without a classifier
        state = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    model.load_whole_state(state)
    model.eval()
    assert isinstance(model, EncoderModel)
    return model


def save_model(
    folder: Path,
    model: EncoderModel,
    tokenizer: Tokenizer,
    labels: tuple[str, ...],
    optimizer: Mapping[str, Tensor] | None = None,
    state: Mapping[str, Any] | None = None,
    extra: Mapping[str, str] | None = None,
    *,
    weights: Mapping[str, Tensor | checkpoint.Parts] | None = None,
    former: Path | None = None,
) -> None:
    """Writes a checkpoint that needs nothing else to be used: weights, configuration, tokenizer.

    Args:
        labels: names of the classes.
        optimizer, state: what resuming needs besides, if it is to be possible.
        extra: further text files, name -> contents.
        weights: a snapshot of the model's; None: the model's own.
        former: where the checkpoint that was there before is kept; None: nowhere.
    """

    def write(new: Path) -> None:
        text = json.dumps(checkpoint_config(model, labels), indent=1, ensure_ascii=False)
        (new / "config.json").write_text(text, encoding="utf-8")
        tokenizer.save(new)
        for name, content in (extra or {}).items():
            (new / name).write_text(content, encoding="utf-8")

    tensors: dict[str, Mapping[str, Tensor | checkpoint.Parts]] = {
        checkpoint.MODEL: model.saved_state() if weights is None else weights
    }
    if optimizer is not None:
        tensors[checkpoint.OPTIMIZER] = {**optimizer}
    checkpoint.save_checkpoint(folder, tensors, state, write, former)
