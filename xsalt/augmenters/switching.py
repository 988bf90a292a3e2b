"""Which tokens of a batch are switched, to which language: what code-switching and embedding mixup share.

Shapes: B sequences, T packed tokens, L languages of the substitution table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from xsalt.batch import Batch, join
from xsalt.data.substitutions import SubstitutionTable
from xsalt.errors import UserError, did_you_mean
from xsalt.fields import key
from xsalt.logging import say
from xsalt.protocols import Needs
from xsalt.randomness import uniform


@dataclass
class SwitchConfig:
    """Keys of augmenters that switch tokens. The paper states none of the values: all defaults are assumed."""

    threshold: float = key(0.3, "least probability of a substitution that is accepted", at_least=0.0, at_most=1.0)
    ratio: float = key(
        0.5, "share of the accepted tokens that is switched, drawn token by token", at_least=0.0, at_most=1.0
    )
    ratio_epochs: float = key(
        0.0, "curriculum: epochs over which the share grows evenly from 0 to ratio; 0: none", at_least=0.0
    )
    probability: float = key(1.0, "probability that an example is switched at all", at_least=0.0, at_most=1.0)
    views: int = key(1, "switched views of an example, each with draws of its own", at_least=1)
    clean: bool = key(False, "keep the example as it is beside its switched views, with the same label")
    language_by: str = key(
        "instance",
        "draw a target language for each instance (view of an example) or token",
        choices=("instance", "token"),
    )
    sampling: str = key(
        "uniform",
        "all languages alike, or nearest: each in proportion to the share of tokens that can be switched to it",
        choices=("uniform", "nearest"),
    )
    segments: str = key(
        "apart",
        "premise and hypothesis apart: each token draws for itself; alike: equal tokens of an example switch together",
        choices=("apart", "alike"),
    )
    weights: dict[str, float] = key(
        {}, "factors on the weights of target languages, {de: 2, fr: 1}; languages left out count 1"
    )


SWITCH_RATE = "augment/switch_rate"
"""Logged: switched tokens and all tokens that are not special. ``SWITCH_RATE/LL``: those of language LL, where tokens
are of the language that their example (or they) drew."""
PROBABILITY = "augment/probability"
"""Logged: mean probability of the substitutions made."""


class Switcher:
    """Switches tokens to their best substitution in a language drawn for the example or the token.

    Everything drawn is a pure function of (seed, epoch, example, view, position in the sequence).

    Raises:
        UserError: if there is no table, or ``weights`` names a language without one or leaves none.
    """

    def __init__(self, config: SwitchConfig, needs: Needs, name: str) -> None:
        if needs.table is None:
            raise UserError(f"augmenter {name} needs a substitution table, and none was built: give a training set")
        self.config = config
        self.table: SubstitutionTable = needs.table
        if needs.train is not None and len(self.table) != len(needs.train.ids):
            raise UserError(
                f"{self.table.folder}: a table of {len(self.table)} tokens, "
                f"but the training set has {len(needs.train.ids)}: "
                "make one for this training set with xsalt-augment"
            )
        languages = self.table.languages
        for language, weight in config.weights.items():
            if language not in languages:
                hint = did_you_mean(language, languages)
                raise UserError(
                    f"augmenter.{name}.weights: no substitutions into {language!r}: {hint}known: {', '.join(languages)}"
                )
            if weight < 0:
                raise UserError(f"augmenter.{name}.weights.{language}={weight}: must be at least 0")
        self._ids: npt.NDArray[np.int64] | None = None
        weight_L = np.array([config.weights.get(language, 1.0) for language in languages], dtype=np.float64)
        if len(self.vocabulary_ids()) == 0:
            say(
                f"warning: augmenter {name} switches nothing: no substitution has a probability of {config.threshold} "
                f"or more; lower augmenter.{name}.threshold, and see what xsalt-augment sample=5 shows"
            )
        elif config.sampling == "nearest":
            weight_L *= self.table.coverage(config.threshold)
        if weight_L.sum() <= 0:
            raise UserError(
                f"augmenter.{name}.weights: no language has a weight above 0, so there is none to switch to"
            )
        self.cumulative_L = np.cumsum(weight_L) / weight_L.sum()

    def vocabulary_ids(self) -> npt.NDArray[np.int64]:
        """Ids that a token may be switched to."""
        if self._ids is None:
            self._ids = self.table.vocabulary_ids(self.config.threshold)
        return self._ids

    def switch(self, batch: Batch) -> Batch:
        """The batch with some tokens switched, ``source_ids_T`` as before; the very same batch if none can be.

        With several views they stand one after the other: all examples as they are (``clean``), all in their first
        switched view and so on. ``view_B`` counts from 0 for the clean view and 1 for switched ones beside it.
        """
        config = self.config
        parts = [batch] if config.clean else []
        for number in range(config.views):
            at = number + 1 if config.clean else number
            view = batch.with_(view_B=batch.view_B + at, log={}) if at else batch
            parts.append(self._switched(view))
        return join(parts)

    def ratio(self, batch: Batch) -> float:
        """Share of the accepted tokens to switch now."""
        config = self.config
        return config.ratio * min(1.0, batch.progress / config.ratio_epochs) if config.ratio_epochs else config.ratio

    def _switched(self, batch: Batch) -> Batch:
        config, ratio = self.config, self.ratio(batch)
        if ratio == 0 or config.probability == 0:
            return batch
        sequence_T = batch.layout.sequence_T.cpu().numpy()
        uid_B, view_B = batch.uid_B.cpu().numpy(), batch.view_B.cpu().numpy()
        corpus_T, source_T = batch.corpus_T.cpu().numpy(), batch.ids_T.cpu().numpy()
        words_T = ~batch.special_T.cpu().numpy()
        alike = config.segments == "alike"
        index_T = source_T if alike else batch.layout.position_T.cpu().numpy()

        def of_examples(purpose: str) -> npt.NDArray[np.float32]:
            return uniform(batch.seed, batch.epoch, f"codeswitch/{purpose}", uid_B, view_B)

        def of_tokens(purpose: str) -> npt.NDArray[np.float32]:
            purpose = f"codeswitch/{purpose}{'/alike' if alike else ''}"
            return uniform(batch.seed, batch.epoch, purpose, uid_B[sequence_T], view_B[sequence_T], index_T)

        if config.language_by == "token":
            drawn_T = self._languages(of_tokens("language"))
        else:
            drawn_T = self._languages(of_examples("language"))[sequence_T]
        chosen_T = (of_examples("example") < config.probability)[sequence_T] & words_T & (corpus_T >= 0)
        at = np.flatnonzero(chosen_T & (of_tokens("token") < ratio))
        ids, probability = self.table.lookup(corpus_T[at], drawn_T[at])
        sure = probability[:, 0].astype(np.float32) >= config.threshold
        accepted = (ids[:, 0] >= 0) & (ids[:, 0] != source_T[at]) & sure
        at, new, probability_N = at[accepted], ids[accepted, 0], probability[accepted, 0]
        log = {**batch.log, SWITCH_RATE: (float(len(at)), float(words_T.sum()))}
        log[PROBABILITY] = (float(probability_N.astype(np.float64).sum()), float(len(at)))
        for index, language in enumerate(self.table.languages):
            of_language = (float((drawn_T[at] == index).sum()), float((drawn_T[words_T] == index).sum()))
            log[f"{SWITCH_RATE}/{language}"] = of_language
        if len(at) == 0:
            return batch.with_(log=log)
        index_L = np.array([_index(batch.languages, language) for language in self.table.languages], dtype=np.int64)
        place = torch.from_numpy(at).to(batch.ids_T.device)
        ids_T, language_T = batch.ids_T.clone(), batch.language_T.clone()
        ids_T[place] = torch.from_numpy(new.astype(np.int64)).to(ids_T.device)
        language_T[place] = torch.from_numpy(index_L[drawn_T[at]]).to(language_T.device)
        return batch.with_(ids_T=ids_T, language_T=language_T, log=log)

    def _languages(self, draw: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Indices into the table's languages for numbers in [0, 1)."""
        return np.minimum(np.searchsorted(self.cumulative_L, draw, side="right"), len(self.cumulative_L) - 1)


def _index(languages: tuple[str, ...], language: str) -> int:
    if language not in languages:
        raise ValueError(f"the batch knows languages {languages}, the substitution table also {language!r}")
    return languages.index(language)
