"""A tiny made-up data set and model for tests that need a whole run in a second or two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORDS = {
    "en": ["cat", "dog", "house", "tree", "river", "green", "small", "runs", "sleeps", "sees"],
    "fr": ["chat", "chien", "maison", "arbre", "fleuve", "vert", "petit", "court", "dort", "voit"],
    "ru": ["кошка", "собака", "дом", "дерево", "река", "зелёный", "малый", "бежит", "спит", "видит"],
}
LABELS = ("entailment", "neutral", "contradiction")
TINY = [
    "pretrained=null",
    "model.hidden_size=32",
    "model.layers=2",
    "model.heads=2",
    "model.ffn_size=64",
    "precision=fp32",
    "device=cpu",
    "batch.size=16",
    "max_length=32",
]

LISTS = ["vocabulary.backend=file", f"vocabulary.files={Path(__file__).parent / 'lists'}"]
"""Keys that give the target languages half of the English words each, as a tokenizer trained on the data has no others
whole."""


def write_nli(folder: Path, train: int = 96, dev: int = 30) -> Path:
    """XNLI-like files: the label is decided by which words premise and hypothesis share."""
    folder.mkdir(parents=True, exist_ok=True)
    for language, words in WORDS.items():
        for split, n in (("train", train), ("dev", dev), ("test", dev)):
            if split == "train" and language != "en":
                continue
            rows = ["premise\thypothesis\tlabel"]
            for i in range(n):
                offset = i * 7 + len(split)
                premise = " ".join(words[(offset + j) % 10] for j in range(3 + i % 5))
                hypothesis = " ".join(words[(offset + (i % 3) * 4 + j) % 10] for j in range(2 + i % 3))
                rows.append(f"{premise}\t{hypothesis}\t{LABELS[i % 3]}")
            (folder / f"{split}-{language}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def run_script(
    name: str, *arguments: str, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """One of the console scripts in a process of its own, one thread."""
    code = f"import sys; from xsalt_cli.{name} import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
