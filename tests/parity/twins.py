"""Tiny random models of ``transformers`` saved as Hugging Face folders, and batches for both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from xsalt.batch import Batch, Layout

LENGTHS = (7, 3, 11, 1, 5)
VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "id2label": {0: "entailment", 1: "neutral", 2: "contradiction"},
    "attn_implementation": "eager",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def twin(architecture: str, kind: str, seed: int = 0, **changes: Any) -> transformers.PreTrainedModel:
    """``kind``: SequenceClassification, MaskedLM or Model (the plain encoder). All weights random, biases included."""
    torch.manual_seed(seed)
    special = (
        {"type_vocab_size": 2, "pad_token_id": 0}
        if architecture == "bert"
        else {"type_vocab_size": 1, "pad_token_id": 1}
    )
    name = {"bert": "Bert", "xlm-roberta": "XLMRoberta"}[architecture]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **special, **changes})
    suffix = kind if kind == "Model" else f"For{kind}"
    model: transformers.PreTrainedModel = getattr(transformers, f"{name}{suffix}")(config)
    model.tie_weights()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(1.0 if "LayerNorm.weight" in key or "layer_norm.weight" in key else 0.0, 0.1)
    return model.eval()


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """The twin as a Hugging Face folder."""
    model.save_pretrained(folder)
    return folder


def batch(types: bool, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Batch:
    """Random sequences of unequal lengths, ids from 3 on, with labels."""
    generator = np.random.default_rng(seed)
    T, B = sum(lengths), len(lengths)
    ids_T = torch.from_numpy(generator.integers(3, VOCAB, T))
    type_T = torch.from_numpy(generator.integers(0, 2, T)) if types else torch.zeros(T, dtype=torch.int64)
    zero_B = torch.zeros(B, dtype=torch.int64)
    return Batch(
        ids_T=ids_T,
        type_T=type_T,
        layout=Layout(np.array(lengths, dtype=np.int64)),
        uid_B=torch.arange(B),
        view_B=zero_B,
        label_B=torch.from_numpy(generator.integers(0, 3, B)),
        language_T=torch.zeros(T, dtype=torch.int64),
        languages=("en",),
        special_T=torch.zeros(T, dtype=torch.bool),
        corpus_T=torch.full((T,), -1),
        source_ids_T=ids_T,
    )


def padded(batch: Batch, pad_id: int) -> dict[str, Tensor]:
    """The same sequences as ``transformers`` takes them."""
    B, S = batch.layout.size, batch.layout.longest

    def spread(values_T: Tensor, fill: int) -> Tensor:
        grid = torch.full((B * S,), fill, dtype=torch.int64)
        grid[batch.layout.padded_T] = values_T
        return grid.view(B, S)

    return {
        "input_ids": spread(batch.ids_T, pad_id),
        "attention_mask": spread(torch.ones_like(batch.ids_T), 0),
        "token_type_ids": spread(batch.type_T, 0),
    }


class FakeTokenizer:
    """What the models ask of a tokenizer: its sizes."""

    def __init__(self, family: str, vocab_size: int = VOCAB) -> None:
        self.family = family
        self.vocab_size = vocab_size
        self.pad_id = 0 if family == "bert" else 1

    def check_fits(self, vocab_size: int, where: str) -> None:
        assert self.vocab_size <= vocab_size, where

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
