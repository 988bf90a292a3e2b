"""XNLI: natural language inference in 15 languages (Conneau et al., EMNLP 2018)."""

from __future__ import annotations

from pathlib import Path

import xsalt
from xsalt.tasks.pairs import ClassificationTask


class XNLI(ClassificationTask):
    """Natural language inference in 15 languages: entailment, neutral, contradiction."""

    labels = ("entailment", "neutral", "contradiction")
    columns = ("premise", "hypothesis", "label")

    @classmethod
    def default_root(cls) -> Path:
        """The small set in 15 languages that ships with xsalt."""
        return Path(xsalt.__file__).parent / "data" / "quickstart"
