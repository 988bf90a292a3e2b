"""BERT, mBERT and encoders of their shape (multilingual-e5-small): positions from 0, two token types."""

from __future__ import annotations

from xsalt.models.base import EncoderModel


class Bert(EncoderModel):
    """BERT: token types, positions from 0 (Devlin et al. 2019, arXiv 1810.04805)."""

    architecture = "bert"
    drops_classifier_input = False
