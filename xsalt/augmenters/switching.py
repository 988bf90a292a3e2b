"""Which tokens of a batch are switched, to which language: what code-switching and embedding mixup share.

Shapes: B sequences, T packed tokens, L languages of the substitution table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from xsalt.batch import Batch
from xsalt.data.substitutions import SubstitutionTable
from xsalt.errors import UserError, did_you_mean
from xsalt.fields import key
from xsalt.protocols import Needs
from xsalt.randomness import uniform


@dataclass
class SwitchConfig:
    """Keys of augmenters that switch tokens. The paper states none of the values: all defaults are assumed."""

    threshold: float = key(0.3, "least probability of a substitution that is accepted", at_least=0.0, at_most=1.0)
    ratio: float = key(
        0.5, "share of the accepted tokens that is switched, drawn token by token", at_least=0.0, at_most=1.0
    )
    probability: float = key(1.0, "probability that an example is switched at all", at_least=0.0, at_most=1.0)
    weights: dict[str, float] = key(
        {}, "weights of target languages when one is drawn for an example, {de: 2, fr: 1}; languages left out count 1"
    )


SWITCH_RATE = "augment/switch_rate"
"""Logged: switched tokens and all tokens that are not special."""


class Switcher:
    """Switches tokens to the best substitution of one language drawn for each example.

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
        weight_L = np.array([config.weights.get(language, 1.0) for language in languages], dtype=np.float64)
        if weight_L.sum() <= 0:
            raise UserError(f"augmenter.{name}.weights: all weights are 0, so no language is left to switch to")
        self.cumulative_L = np.cumsum(weight_L) / weight_L.sum()
        self._ids: npt.NDArray[np.int64] | None = None

    def vocabulary_ids(self) -> npt.NDArray[np.int64]:
        """Ids that a token may be switched to."""
        if self._ids is None:
            self._ids = self.table.vocabulary_ids(self.config.threshold)
        return self._ids

    def switch(self, batch: Batch) -> Batch:
        """The batch with some tokens switched, ``source_ids_T`` as before; the very same batch if ``ratio`` is 0."""
        config = self.config
        if config.ratio == 0 or config.probability == 0:
            return batch
        sequence_T = batch.layout.sequence_T.cpu().numpy()
        position_T = batch.layout.position_T.cpu().numpy()
        uid_B, view_B = batch.uid_B.cpu().numpy(), batch.view_B.cpu().numpy()
        corpus_T = batch.corpus_T.cpu().numpy()
        words_T = ~batch.special_T.cpu().numpy()

        def draw(purpose: str, by_token: bool) -> npt.NDArray[np.float32]:
            if by_token:
                return uniform(
                    batch.seed, batch.epoch, f"codeswitch/{purpose}", uid_B[sequence_T], view_B[sequence_T], position_T
                )
            return uniform(batch.seed, batch.epoch, f"codeswitch/{purpose}", uid_B, view_B)

        language_B = np.searchsorted(self.cumulative_L, draw("language", by_token=False), side="right")
        language_B = np.minimum(language_B, len(self.cumulative_L) - 1)
        chosen_B = draw("example", by_token=False) < config.probability
        allowed_T = chosen_B[sequence_T] & words_T & (corpus_T >= 0)
        at = np.flatnonzero(allowed_T & (draw("token", by_token=True) < config.ratio))
        ids, probability = self.table.lookup(corpus_T[at], language_B[sequence_T[at]])
        source = batch.ids_T.cpu().numpy()
        accepted = (
            (ids[:, 0] >= 0) & (ids[:, 0] != source[at]) & (probability[:, 0].astype(np.float32) >= config.threshold)
        )
        at, new = at[accepted], ids[accepted, 0]
        log = {**batch.log, SWITCH_RATE: (float(len(at)), float(words_T.sum()))}
        if len(at) == 0:
            return batch.with_(log=log)
        index_L = np.array([_index(batch.languages, language) for language in self.table.languages], dtype=np.int64)
        place = torch.from_numpy(at).to(batch.ids_T.device)
        ids_T, language_T = batch.ids_T.clone(), batch.language_T.clone()
        ids_T[place] = torch.from_numpy(new.astype(np.int64)).to(ids_T.device)
        language_T[place] = torch.from_numpy(index_L[language_B[sequence_T[at]]]).to(language_T.device)
        return batch.with_(ids_T=ids_T, language_T=language_T, log=log)


def _index(languages: tuple[str, ...], language: str) -> int:
    if language not in languages:
        raise ValueError(f"the batch knows languages {languages}, the substitution table also {language!r}")
    return languages.index(language)
