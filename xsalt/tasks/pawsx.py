"""PAWS-X: adversarial paraphrase identification in 7 languages (Yang et al., EMNLP 2019)."""

from __future__ import annotations

from xsalt.tasks.pairs import ClassificationTask


class PAWSX(ClassificationTask):
    """Adversarial paraphrase identification in 7 languages: 0 not a paraphrase, 1 a paraphrase."""

    labels = ("0", "1")
    columns = ("sentence1", "sentence2", "label")
    no_text = frozenset({"NS"})  # sentences that the translators left out, a known defect of the published files
