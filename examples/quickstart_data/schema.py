"""What a frame of the quick-start NLI set is made of.

A frame is one small situation, written by hand in every language that its split needs. Filling its slots gives an
*item*: one hypothesis and three premises, one for each class. Since every hypothesis appears once with each label,
a classifier that reads only the hypothesis is at chance by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
LABELS = ("entailment", "neutral", "contradiction")
RELATIONS = ("negation", "quantity", "time", "place", "lexical", "comparison", "cause", "knowledge", "paraphrase")

Text = Mapping[str, str]
"""Language code -> text. A template holds slots in braces: ``{who}``."""


@dataclass(frozen=True)
class Frame:
    """One situation.

    Attributes:
        name: unique over all splits.
        relation: what decides the label, one of ``RELATIONS``.
        hypothesis: the template of the hypothesis, by language.
        entailment, neutral, contradiction: one or more templates of the premise each; items take them in turn.
        slots: slot name -> the values it can take, each by language, already in the form that the sentence needs
            (case, gender, preposition, article). The same value is used in every language of a row.
    """

    name: str
    relation: str
    hypothesis: Text
    entailment: Sequence[Text]
    neutral: Sequence[Text]
    contradiction: Sequence[Text]
    slots: Mapping[str, Sequence[Text]] = field(default_factory=dict)
