"""The models and data that the contestants share, as folders that both sides read."""

from __future__ import annotations

import json
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


def bert_folder(work: Path, layers: int) -> Path:
    """The shape of mBERT with random weights, and a tokenizer of as many pieces: ``w0``, ``w1`` ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder, size = work / "bert", 119_547
    config = transformers.BertConfig(vocab_size=size, num_labels=3, num_hidden_layers=layers)
    torch.manual_seed(1)
    _save(transformers.BertForSequenceClassification(config), folder)
    pieces = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    pieces |= {f"w{i}": i for i in range(len(pieces), size)}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special |= {"mask_token": "[MASK]", "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")
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
