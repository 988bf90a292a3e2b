"""The model that a run trains: encoder, classifier and, where needed, a masked-language-model head.

Shapes: B sequences, T packed tokens, R rows (T or B), N positions, D width, C classes, V vocabulary.

Names in ``whole_state`` (and so in ``model.safetensors``): ``embeddings.word.weight`` (V, D), ``embeddings.position``
(position_offset + max_positions, D), ``embeddings.token_type``, ``embeddings.norm.*``; for each layer i from 0
``encoder.layers.i.``: ``attention.qkv.*`` (query, key and value one below the other, (3D, D)), ``attention.out.*``,
``attention_norm.*``, ``ffn_in.*``, ``ffn_out.*``, ``ffn_norm.*``; ``classifier.dense.*`` (first-token pooling only),
``classifier.out.*``; ``mlm_head.dense.*``, ``mlm_head.norm.*``, ``mlm_head.bias`` (V).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from xsalt.batch import Batch, Layout
from xsalt.checkpoint import Parts
from xsalt.errors import UserError
from xsalt.nn.embedding import Embeddings
from xsalt.nn.encoder import Encoder, EncoderConfig
from xsalt.nn.heads import FirstTokenClassifier, MeanClassifier, MLMHead
from xsalt.parallel import sharded_like, whole
from xsalt.protocols import FIRST

WORD_TABLE = "embeddings.word.weight"
POOLINGS = ("first", "mean")
ACTIVATIONS = ("gelu", "none")


@dataclass
class ModelConfig:
    """Which model. Sizes count only where training starts from scratch (``pretrained=null``)."""

    name: str = "auto"
    """``auto`` (the checkpoint's architecture), ``bert`` or ``xlm-roberta``."""
    hidden_size: int = 256
    """Width D, a multiple of ``heads``."""
    layers: int = 4
    """Transformer layers."""
    heads: int = 4
    """Attention heads of a layer."""
    ffn_size: int = 1024
    """Width of the feed-forward layer."""
    max_positions: int = 512
    """Tokens that a sequence may have."""
    pooling: str = "first"
    """What the classifier reads: ``first`` (first token, through a dense layer) or ``mean`` (mean of all tokens)."""
    mlm_layer: int | None = None
    """Hidden layer that the masked-language-model head reads, from 0; null is the last."""
    mlm_activation: str | None = None
    """Of a masked-language-model head: ``gelu`` (BERT's), or ``none``, which starts as the identity; null is the
    checkpoint's, else ``gelu``."""


class EncoderModel(nn.Module):
    """A BERT-like encoder with its heads; subclasses say what their architecture does differently.

    Args:
        config: sizes, with the dropout of this run.
        table_VD: the word table; it may be memory-mapped and is never written to.
        reload: gives the same table again from a file, see ``ActiveRows``.
        num_labels: classes of the classifier; 0 for none.
        pooling: ``first`` or ``mean``.
        mlm_head: whether to have a masked-language-model head.
        mlm_layer: the hidden layer that it reads; None is the last.
        mlm_activation: ``gelu`` or ``none``, see ``MLMHead``.

    Attributes:
        new_parts: parts that were initialised at random rather than read from a checkpoint.
    """

    Config: ClassVar[type] = ModelConfig
    architecture: ClassVar[str]
    drops_classifier_input: ClassVar[bool]

    def __init__(
        self,
        config: EncoderConfig,
        table_VD: Tensor,
        *,
        num_labels: int = 0,
        pooling: str = "first",
        mlm_head: bool = False,
        mlm_layer: int | None = None,
        mlm_activation: str = "gelu",
        reload: Callable[[], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError(f"model.pooling={pooling!r} is not one of {', '.join(POOLINGS)}")
        if mlm_activation not in ACTIVATIONS:
            raise UserError(f"model.mlm_activation={mlm_activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if mlm_layer is not None and not 0 <= mlm_layer <= config.layers:
            raise UserError(f"model.mlm_layer={mlm_layer}: the encoder has hidden layers 0 to {config.layers}")
        self.config = config
        self.pooling = pooling
        self.num_labels = num_labels
        self.mlm_layer = config.layers if mlm_layer is None else mlm_layer
        self.new_parts: tuple[str, ...] = ()
        D = config.hidden_size
        self.embeddings = Embeddings(config, table_VD, reload)
        self.encoder = Encoder(config)
        self.classifier: FirstTokenClassifier | MeanClassifier | None = None
        if num_labels and pooling == "first":
            self.classifier = FirstTokenClassifier(D, num_labels, config.dropout, self.drops_classifier_input)
        elif num_labels:
            self.classifier = MeanClassifier(D, num_labels, config.dropout)
        self.mlm_activation = mlm_activation
        self.mlm_head = MLMHead(D, config.vocab_size, config.layer_norm_eps, mlm_activation) if mlm_head else None

    def embed(self, batch: Batch) -> Tensor:
        """x_TD, with word rows mixed where the batch carries a mix. Raises ``UserError`` for sequences too long."""
        embedded_TD: Tensor = self.embeddings(batch)
        return embedded_TD

    def encode(
        self, x_TD: Tensor, layout: Layout, keep: Sequence[int] = (), last: int | None = None
    ) -> dict[int, Tensor]:
        """Layer number -> h_TD for the layers in ``keep`` (0: embeddings) and for what ``classify`` reads.

        That is the last layer, or with first-token pooling h_BD of first tokens under ``FIRST``, as nothing else of
        that layer is then computed unless ``keep`` names it. ``last`` stops after an earlier layer and gives that.
        """
        hidden: dict[int, Tensor] = self.encoder(x_TD, layout, keep, last, first_only=self._first_only(last))
        return hidden

    def weight_products(self, layout: Layout, keep: Sequence[int] = (), last: int | None = None) -> int:
        """Products of a weight and a number of a state in the matrix products of ``encode``, without attention's."""
        return self.encoder.weight_products(layout, keep, last, first_only=self._first_only(last))

    def _first_only(self, last: int | None) -> bool:
        return last is None and isinstance(self.classifier, FirstTokenClassifier)

    def classify(self, hidden: Mapping[int, Tensor], layout: Layout) -> Tensor:
        """logits_BC, float32. Raises ``RuntimeError`` if the model was built without labels."""
        if self.classifier is None:
            raise RuntimeError("this model has no classifier: it was built with num_labels=0")
        h_RD = hidden[FIRST] if FIRST in hidden else hidden[self.config.layers]
        logits_BC: Tensor = self.classifier(h_RD, layout)
        return logits_BC

    def mlm_transform(self, h_ND: Tensor) -> Tensor:
        """What ``mlm_logits`` multiplies with the word rows, (N, D). Raises ``RuntimeError`` without a head."""
        if self.mlm_head is None:
            raise RuntimeError("this model has no masked-language-model head: build it with mlm_head=True")
        transformed_ND: Tensor = self.mlm_head(h_ND)
        return transformed_ND

    def mlm_logits(self, h_ND: Tensor, ids_V: Tensor | None = None) -> Tensor:
        """Logits of the ids asked for (None: the whole vocabulary), float32 of shape (N, V)."""
        transformed_ND = self.mlm_transform(h_ND)
        assert self.mlm_head is not None
        word = self.embeddings.word
        if ids_V is None and len(word.active_ids) == word.vocab_size:
            return self.mlm_head.decode(transformed_ND, word.trainable_weight(), None)
        if ids_V is None:
            ids_V = torch.arange(word.vocab_size, device=h_ND.device)
        return self.mlm_head.decode(transformed_ND, word.rows(ids_V), ids_V)

    def whole_state(self) -> dict[str, Tensor]:
        """All weights by name, on the CPU, the word table whole.

        They may share memory with the model: do not write to them.
        """
        return {WORD_TABLE: self.embeddings.word.export(), **self._other_state()}

    def saved_state(self) -> dict[str, Tensor | Parts]:
        """``whole_state`` for a file: the word table comes in parts, so that it never stands in memory whole."""
        word = self.embeddings.word
        table = Parts((word.vocab_size, word.width), word.weight.dtype, word.export_parts)
        return {WORD_TABLE: table, **self._other_state()}

    def snapshot(self) -> dict[str, Tensor | Parts]:
        """``saved_state`` as of now, for another thread to write while training goes on: what is trained is copied."""
        word = self.embeddings.word
        table = Parts((word.vocab_size, word.width), word.weight.dtype, word.snapshot())
        others = {name: value.detach() for name, value in self.state_dict().items() if name != WORD_TABLE}
        copies = {name: whole(value).to("cpu", copy=True) for name, value in others.items()}
        return {WORD_TABLE: table, **copies}

    def _other_state(self) -> dict[str, Tensor]:
        state = {name: value for name, value in self.state_dict().items() if name != WORD_TABLE}
        return {name: whole(value.detach()).cpu() for name, value in state.items()}

    @torch.no_grad()
    def load_whole_state(
        self, state: Mapping[str, Tensor], parts: Sequence[str] = (), *, active_rows_only: bool = False
    ) -> None:
        """Reads weights as ``whole_state`` gives them.

        Args:
            active_rows_only: leave the word rows that are not trained as they are.
            parts: only these (``embeddings``, ``encoder``, ``classifier``, ``classifier.dense``, ``mlm_head``);
                () is all.

        Raises ``UserError`` that names missing, unexpected and misshapen tensors.
        """
        mine = dict(self.named_parameters())
        if parts:
            prefixes = tuple(f"{part}." for part in parts)
            mine = {name: value for name, value in mine.items() if name.startswith(prefixes)}
            state = {name: value for name, value in state.items() if name.startswith(prefixes)}
        shapes = {name: tuple(value.shape) for name, value in mine.items()}
        if WORD_TABLE in shapes:
            shapes[WORD_TABLE] = (self.embeddings.word.vocab_size, self.embeddings.word.width)
        check_names_and_shapes(shapes, {name: tuple(value.shape) for name, value in state.items()}, "the model's state")
        for name, value in mine.items():
            if name == WORD_TABLE:
                word = self.embeddings.word
                word.load_active(state[name]) if active_rows_only else word.load(state[name])
            else:
                value.copy_(sharded_like(state[name], value))

    @torch.no_grad()
    def initialise(self, parts: Sequence[str], seed: int) -> None:
        """Draws the weights of these parts anew: matrices from N(0, 0.02**2), biases 0, LayerNorm scales 1.

        Each tensor has a stream of its own, so that a new part never depends on which others are new.
        """
        wanted = [
            (name, value) for name, value in self.named_parameters() if name.startswith(tuple(f"{p}." for p in parts))
        ]
        for name, value in wanted:
            if name == WORD_TABLE:  # may be shared with whoever gave it
                value = self.embeddings.word.weight
                value.data = torch.empty_like(value)
            generator = torch.Generator().manual_seed(_stream(seed, name))
            if name.endswith("norm.weight"):
                value.fill_(1.0)
            elif name.endswith("bias"):
                value.zero_()
            elif name == "mlm_head.dense.weight" and self.mlm_activation == "none":
                nn.init.eye_(value)
            else:
                value.copy_(torch.empty(value.shape, dtype=value.dtype).normal_(0.0, 0.02, generator=generator))
        self.new_parts = (*self.new_parts, *parts)


def _stream(seed: int, name: str) -> int:
    import zlib

    return (seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode())) & 0x7FFFFFFFFFFFFFFF


def with_dropout(config: EncoderConfig, dropout: float) -> EncoderConfig:
    """The configuration with another dropout, in hidden layers and attention alike."""
    return replace(config, dropout=dropout, attention_dropout=dropout)


def check_names_and_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raises ``UserError`` that names the tensors that are missing, unexpected or misshapen."""
    faults = []
    if missing := sorted(set(expected) - set(found)):
        faults.append(f"missing tensors: {_some(missing)}")
    if extra := sorted(set(found) - set(expected)):
        faults.append(f"unexpected tensors: {_some(extra)}")
    wrong = sorted(n for n in set(expected) & set(found) if tuple(expected[n]) != tuple(found[n]))
    if wrong:
        faults.append(
            "misshapen tensors: " + _some([f"{n} is {list(found[n])}, expected {list(expected[n])}" for n in wrong])
        )
    if faults:
        raise UserError(f"{where}: {'; '.join(faults)}")


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
