"""XLM-R: one token type, positions counted from behind the padding id."""

from __future__ import annotations

from xsalt.models.base import EncoderModel


class XLMRoberta(EncoderModel):
    """XLM-R: no token types, positions after the padding id (Conneau et al. 2020, arXiv 1911.02116)."""

    architecture = "xlm-roberta"
    drops_classifier_input = True
