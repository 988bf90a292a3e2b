"""Names of tensors: ours, and those of Hugging Face folders, one table an architecture.

Each row: our name, and the names there (three where we hold query, key and value as one tensor), without the
``bert.`` or ``roberta.`` that folders put in front of the encoder's names. ``{i}`` is the number of a layer, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LAYER = (
    ("attention.out", ("attention.output.dense",)),
    ("attention_norm", ("attention.output.LayerNorm",)),
    ("ffn_in", ("intermediate.dense",)),
    ("ffn_out", ("output.dense",)),
    ("ffn_norm", ("output.LayerNorm",)),
    ("attention.qkv", ("attention.self.query", "attention.self.key", "attention.self.value")),
)
ENCODER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("embeddings.word.weight", ("embeddings.word_embeddings.weight",)),
    ("embeddings.position", ("embeddings.position_embeddings.weight",)),
    ("embeddings.token_type", ("embeddings.token_type_embeddings.weight",)),
    ("embeddings.norm.weight", ("embeddings.LayerNorm.weight",)),
    ("embeddings.norm.bias", ("embeddings.LayerNorm.bias",)),
    *(
        (f"encoder.layers.{{i}}.{ours}.{kind}", tuple(f"encoder.layer.{{i}}.{name}.{kind}" for name in theirs))
        for ours, theirs in _LAYER
        for kind in ("weight", "bias")
    ),
)


@dataclass(frozen=True)
class Names:
    """How one architecture is spelt in Hugging Face folders.

    Attributes:
        prefix: what stands before the encoder's names there.
        pooler: our name -> theirs, for the dense layer that a plain encoder brings along (without the prefix).
        classifier, mlm_head: our name -> theirs.
        ignored: beginnings of names that folders hold and that no model here reads.
    """

    prefix: str
    pooler: dict[str, str]
    classifier: dict[str, str]
    mlm_head: dict[str, str]
    ignored: tuple[str, ...]


def _both(*pairs: tuple[str, str]) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in pairs for kind in ("weight", "bias")}


NAMES = {
    "bert": Names(
        prefix="bert.",
        pooler=_both(("classifier.dense", "pooler.dense")),
        classifier=_both(("classifier.out", "classifier")),
        mlm_head=_both(
            ("mlm_head.dense", "cls.predictions.transform.dense"),
            ("mlm_head.norm", "cls.predictions.transform.LayerNorm"),
        )
        | {"mlm_head.bias": "cls.predictions.bias"},
        ignored=("cls.seq_relationship.",),
    ),
    "xlm-roberta": Names(
        prefix="roberta.",
        pooler={},
        classifier=_both(("classifier.dense", "classifier.dense"), ("classifier.out", "classifier.out_proj")),
        mlm_head=_both(("mlm_head.dense", "lm_head.dense"), ("mlm_head.norm", "lm_head.layer_norm"))
        | {"mlm_head.bias": "lm_head.bias"},
        ignored=("pooler.", "roberta.pooler."),
    ),
}
POSITION_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
TIED = {
    "bert": ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    "xlm-roberta": ("lm_head.decoder.weight", "lm_head.decoder.bias"),
}


def encoder_names(layers: int) -> list[tuple[str, tuple[str, ...]]]:
    """(our name, names there without prefix) of all tensors of an encoder with so many layers."""
    rows = []
    for ours, theirs in ENCODER:
        for i in range(layers) if "{i}" in ours else (0,):
            rows.append((ours.format(i=i), tuple(name.format(i=i) for name in theirs)))
    return rows


def to_hugging_face(state: dict[str, Tensor], architecture: str, layers: int, prefixed: bool) -> dict[str, Tensor]:
    """Our tensors under the names of a Hugging Face folder; heads included where ``state`` has them."""
    names = NAMES[architecture]
    prefix = names.prefix if prefixed else ""
    renamed: dict[str, Tensor] = {}
    for ours, theirs in encoder_names(layers):
        for name, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
            renamed[prefix + name] = part.contiguous()
    renamed |= {prefix + theirs: state[ours] for ours, theirs in names.pooler.items() if ours in state}
    renamed |= {theirs: state[ours] for ours, theirs in {**names.classifier, **names.mlm_head}.items() if ours in state}
    return renamed


def joined(parts: list[Tensor]) -> Tensor:
    """One tensor of those that we hold as one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
