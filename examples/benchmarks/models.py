"""The models and data that the contestants share, as folders that both sides read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

LABELS = ["entailment", "neutral", "contradiction"]


def _save(model: transformers.PreTrainedModel, folder: Path) -> None:
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: i for i, label in enumerate(LABELS)}
    model.save_pretrained(folder)


def e5_folder(work: Path) -> Path:
    """multilingual-e5-small with a classifier drawn once, so that all contestants start from the same weights."""
    from xsalt_cli.convert import main as convert

    folder = work / "e5"
    if convert(["e5-small", str(folder)]):
        raise SystemExit("benchmark: e5-small cannot be had, see above")
    torch.manual_seed(1)
    _save(transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3), folder)
    return folder


def e5_masked_folder(work: Path) -> Path:
    """multilingual-e5-small with a masked-language-model head of random weights: enough to measure speed."""
    source, folder = e5_folder(work), work / "e5-masked"
    torch.manual_seed(1)
    transformers.AutoModelForMaskedLM.from_pretrained(source).save_pretrained(folder)
    for file in (*source.glob("token*"), *source.glob("special*")):
        shutil.copy(file, folder)
    return folder


def bert_folder(work: Path, layers: int, width: int) -> Path:
    """The shape of mBERT (12 layers, width 768) with random weights, and a tokenizer of as many pieces: ``w5`` ..."""
    folder, size = work / "bert", 119_547
    config = transformers.BertConfig(
        vocab_size=size,
        num_labels=3,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    torch.manual_seed(1)
    _save(transformers.BertForSequenceClassification(config), folder)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, size))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}), encoding="utf-8")
    return folder


def write_synthetic_pairs(path: Path, rows: int, pieces: int, mean: float = 40.0) -> Path:
    """Pairs of words ``w5`` ... by Zipf's law; lengths in tokens are log-normal with this mean, like XNLI's."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(mean) - 0.125, 0.5, rows), 8, 120).astype(int) - 3
    lines = ["premise\thypothesis\tlabel"]
    for row, length in enumerate(lengths):
        words = [f"w{5 + min(int(rank), pieces - 6)}" for rank in rng.zipf(1.2, length)]
        cut = max(1, int(length * 2 / 3))
        lines.append(f"{' '.join(words[:cut])}\t{' '.join(words[cut:]) or 'w5'}\t{LABELS[row % 3]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
