"""Which tokens of a batch are switched, to which language: what code-switching and embedding mixup share.

Shapes: B sequences, T packed tokens, N tokens drawn of them, L languages of the substitution table, k substitutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from xsalt.batch import MASKED_VIEW, Batch, join
from xsalt.config_distill import THRESHOLD
from xsalt.data.substitutions import SubstitutionTable
from xsalt.errors import UserError, did_you_mean
from xsalt.fields import key
from xsalt.logging import say
from xsalt.protocols import Needs
from xsalt.randomness import uniform

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass
class SwitchConfig:
    """Keys of augmenters that switch tokens. The paper states none of the values: all defaults are assumed."""

    threshold: float = key(THRESHOLD, "least probability of a substitution that is accepted", at_least=0.0, at_most=1.0)
    ratio: float = key(
        0.5, "share of the accepted tokens that is switched, drawn token by token", at_least=0.0, at_most=1.0
    )
    ratio_epochs: float = key(
        0.0, "curriculum: epochs over which the share grows evenly from 0 to ratio; 0: none", at_least=0.0
    )
    probability: float = key(1.0, "probability that an example is switched at all", at_least=0.0, at_most=1.0)
    views: int = key(1, "switched views of an example, each with draws of its own", at_least=1, at_most=MASKED_VIEW - 1)
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
    weights: dict[str, float] = key(
        {}, "factors on the weights of target languages, {de: 2, fr: 1}; languages left out count 1"
    )
    choose: str = key(
        "best",
        "the most probable substitution, or sample: one of the accepted in proportion to their probabilities "
        "(needs a table with distill.k above 1)",
        choices=("best", "sample"),
    )
    segments: str = key(
        "apart",
        "premise and hypothesis apart: each token draws for itself; alike: equal tokens of an example become the same",
        choices=("apart", "alike"),
    )
    synonyms: float = key(
        0.0,
        "probability that a token that is drawn becomes a synonym of its own language, not a translation",
        at_least=0.0,
        at_most=1.0,
    )
    synonym_threshold: float = key(0.5, "least probability of a synonym that is accepted", at_least=0.0, at_most=1.0)


SWITCH_RATE = "augment/switch_rate"
"""Logged: switched tokens and all tokens that are not special. ``SWITCH_RATE/LL``: those of language LL, where tokens
are of the language that their example (or they) drew."""
PROBABILITY = "augment/probability"
"""Logged: mean probability of the substitutions made; ``PROBABILITY/LL``: of those in language LL."""
NEVER = 2.0
"""A threshold that no probability reaches."""


class Switcher:
    """Switches tokens to substitutions in a language drawn for the example or the token.

    Everything drawn is a pure function of (seed, epoch, example, view, position in the sequence).

    Columns of the table that are source languages hold synonyms: nothing but ``synonyms`` leads to them, and only for
    tokens of that language.

    Raises:
        UserError: if there is no table, or one without the synonyms asked for, or ``weights`` names a language without
            substitutions or leaves none.
    """

    def __init__(self, config: SwitchConfig, needs: Needs, name: str) -> None:
        if needs.table is None or needs.train is None:
            raise UserError(f"augmenter {name} needs a substitution table, and none was built: give a training set")
        self.config, self.name = config, name
        self.table: SubstitutionTable = needs.table
        self.own_N: npt.NDArray[np.int32] = needs.train.ids
        if len(self.table) != len(self.own_N):
            raise UserError(
                f"{self.table.folder}: a table of {len(self.table)} tokens, "
                f"but the training set has {len(self.own_N)}: "
                "make one for this training set with xsalt-augment"
            )
        self.synonym_L: Mask = np.array([language in needs.source for language in self.table.languages], dtype=np.bool_)
        if config.synonyms and not self.synonym_L.any():
            raise UserError(
                f"augmenter.{name}.synonyms={config.synonyms}: {self.table.folder} has no synonyms in "
                f"{', '.join(needs.source)}: set distill.synonyms=true"
            )
        of_synonyms = config.synonym_threshold if config.synonyms else NEVER
        self.threshold_L: Floats = np.where(self.synonym_L, of_synonyms, config.threshold).astype(np.float32)
        self.ranks = self.table.ids_NLK.shape[2] if config.choose == "sample" else 1
        if config.choose == "sample" and self.ranks == 1:
            raise UserError(
                f"augmenter.{name}.choose=sample: {self.table.folder} has one substitution for a token and language, "
                "so there is none to choose: set distill.k to more than 1"
            )
        self.cumulative_L = self._cumulative_weights()
        self._ids: Numbers | None = None

    @property
    def languages(self) -> dict[str, int]:
        """Languages that tokens may be switched to -> their columns of the table."""
        columns = np.flatnonzero(self.threshold_L < NEVER).tolist()
        return {self.table.languages[column]: column for column in columns}

    def _cumulative_weights(self) -> npt.NDArray[np.float64]:
        config, languages = self.config, self.table.languages
        targets = [language for language, own in zip(languages, self.synonym_L, strict=True) if not own]
        for language, weight in config.weights.items():
            if language not in targets:
                hint = did_you_mean(language, targets)
                raise UserError(
                    f"augmenter.{self.name}.weights: no substitutions into {language!r}: {hint}"
                    f"known: {', '.join(targets)}"
                )
            if weight < 0:
                raise UserError(f"augmenter.{self.name}.weights.{language}={weight}: must be at least 0")
        weight_L = np.array([config.weights.get(language, 1.0) for language in languages], dtype=np.float64)
        weight_L[self.synonym_L] = 0.0
        if not weight_L.max() < 1e100:  # their sum has to be a number
            raise UserError(f"augmenter.{self.name}.weights: {weight_L.max():g} is too large: make it smaller")
        if weight_L.sum() <= 0:
            raise UserError(
                f"augmenter.{self.name}.weights: no language has a weight above 0, so there is none to switch to"
            )
        if config.sampling == "nearest":
            nearness_L = weight_L * self.table.coverage(self.own_N, config.threshold, self.ranks)
            weight_L = nearness_L if nearness_L.sum() > 0 else weight_L
        cumulative_L: npt.NDArray[np.float64] = np.cumsum(weight_L) / weight_L.sum()
        return cumulative_L

    def vocabulary_ids(self) -> Numbers:
        """Ids that a token may be switched to. Says so if there are none."""
        if self._ids is None:
            self._ids = self.table.vocabulary_ids(self.own_N, self.threshold_L, self.ranks)
            if len(self._ids) == 0:
                say(
                    f"warning: augmenter {self.name} switches nothing: no substitution has a probability of "
                    f"augmenter.{self.name}.threshold={self.config.threshold} or more: {self.table.why_nothing()}"
                )
        return self._ids

    def coverage(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """Tokens that can be switched to each language, and tokens that are not special (for synonyms: of it)."""
        words_T = ~batch.special_T.cpu().numpy() & (batch.corpus_T.cpu().numpy() >= 0)
        corpus_N, source_N = batch.corpus_T.cpu().numpy()[words_T], batch.source_ids_T.cpu().numpy()[words_T]
        own_N = self._own_column(batch)[words_T]
        found = {}
        for language, column in self.languages.items():
            ids_Nk, probability_Nk = self.table.lookup(corpus_N, np.full(len(corpus_N), column))
            sure_Nk = probability_Nk[:, : self.ranks].astype(np.float32) >= self.threshold_L[column]
            new_Nk = (ids_Nk[:, : self.ranks] >= 0) & (ids_Nk[:, : self.ranks] != source_N[:, None])
            of_N = own_N == column if self.synonym_L[column] else np.ones(len(own_N), dtype=np.bool_)
            found[language] = (float(((sure_Nk & new_Nk).any(1) & of_N).sum()), float(of_N.sum()))
        return found

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
            parts.append(self._switched(view, "codeswitch"))
        return join(parts)

    def again(self, batch: Batch) -> Batch:
        """The views of a batch that is switched already, switched from the source once more by draws of their own.

        What ``switch`` left as it is (clean views, examples outside of ``probability``) stays so.
        """
        layout = batch.layout
        language_T = batch.language_T[layout.first_B][layout.sequence_T]  # first tokens are special, never switched
        source = batch.with_(ids_T=batch.source_ids_T, language_T=language_T, log={})
        return self._switched(source, "codeswitch/again", batch.view_B.cpu().numpy() > 0 if self.config.clean else None)

    def ratio(self, batch: Batch) -> float:
        """Share of the accepted tokens to switch now."""
        config = self.config
        return config.ratio * min(1.0, batch.progress / config.ratio_epochs) if config.ratio_epochs else config.ratio

    def _switched(self, batch: Batch, purpose: str, only_B: Mask | None = None) -> Batch:
        config, ratio = self.config, self.ratio(batch)
        if ratio == 0 or config.probability == 0:
            return batch
        draws = _Draws(batch, purpose, config.segments == "alike")
        source_T, corpus_T = batch.ids_T.cpu().numpy(), batch.corpus_T.cpu().numpy()
        words_T = ~batch.special_T.cpu().numpy()
        chosen_B = _of_examples(batch, "codeswitch/example") < config.probability
        chosen_B = chosen_B if only_B is None else chosen_B & only_B
        column_T = self._columns(batch, draws)
        at = np.flatnonzero(chosen_B[draws.sequence_T] & words_T & (corpus_T >= 0) & (column_T >= 0))
        at = at[draws.of_tokens("token", at) < ratio]
        ids_N, probability_N = self._choose(corpus_T[at], column_T[at], at, draws)
        accepted_N = (ids_N >= 0) & (ids_N != source_T[at])
        at, ids_N, probability_N = at[accepted_N], ids_N[accepted_N], probability_N[accepted_N]
        log = batch.log | self._figures(column_T[at], column_T[words_T], probability_N)
        if len(at) == 0:
            return batch.with_(log=log)
        index_L = np.array([_index(batch.languages, language) for language in self.table.languages], dtype=np.int64)
        place = torch.from_numpy(at).to(batch.ids_T.device)
        ids_T, language_T = batch.ids_T.clone(), batch.language_T.clone()
        ids_T[place] = torch.from_numpy(ids_N).to(ids_T.device)
        language_T[place] = torch.from_numpy(index_L[column_T[at]]).to(language_T.device)
        return batch.with_(ids_T=ids_T, language_T=language_T, log=log)

    def _columns(self, batch: Batch, draws: _Draws) -> Numbers:
        """The column of the table that each token is to be switched by; -1: synonyms, and there are none."""
        if self.config.language_by == "token":
            draw_T = draws.of_tokens("language")
        else:
            draw_T = _of_examples(batch, f"{draws.purpose}/language")[draws.sequence_T]
        column_T = np.minimum(np.searchsorted(self.cumulative_L, draw_T, side="right"), len(self.cumulative_L) - 1)
        if self.config.synonyms:
            synonym_T = draws.of_tokens("synonym") < self.config.synonyms
            column_T = np.where(synonym_T, self._own_column(batch), column_T)
        return column_T

    def _own_column(self, batch: Batch) -> Numbers:
        """The column of synonyms in each token's own language, -1 where there is none."""
        columns = {language: i for i, language in enumerate(self.table.languages) if self.synonym_L[i]}
        of_language = np.array([columns.get(language, -1) for language in batch.languages], dtype=np.int64)
        own_T: Numbers = of_language[batch.language_T.cpu().numpy()]
        return own_T

    def _choose(self, corpus_N: Numbers, column_N: Numbers, at: Numbers, draws: _Draws) -> tuple[Numbers, Floats]:
        """Substitution of each token and its probability; id -1 where none is accepted.

        ``sample`` takes the first whose cumulative probability, among those that reach the threshold, exceeds the draw.
        """
        ids_Nk, half_Nk = self.table.lookup(corpus_N, column_N)
        ids_Nk, probability_Nk = ids_Nk[:, : self.ranks], half_Nk[:, : self.ranks].astype(np.float32)
        surest_N = draws.surest_of_its_kind(at, probability_Nk[:, 0])
        ids_Nk, probability_Nk = ids_Nk[surest_N], probability_Nk[surest_N]
        sure_Nk = (ids_Nk >= 0) & (probability_Nk >= self.threshold_L[column_N][:, None])
        rank_N = np.zeros(len(at), dtype=np.int64)
        if self.ranks > 1:
            sum_Nk = np.cumsum(np.where(sure_Nk, probability_Nk, 0.0), axis=1, dtype=np.float64)
            passed_Nk = sum_Nk <= draws.of_tokens("choice", at)[:, None] * sum_Nk[:, -1:]
            rank_N = np.minimum(passed_Nk.sum(1), self.ranks - 1)
        row_N = np.arange(len(at))
        id_N = np.where(sure_Nk[row_N, rank_N], ids_Nk[row_N, rank_N], -1).astype(np.int64)
        return id_N, probability_Nk[row_N, rank_N]

    def _figures(self, switched_N: Numbers, words_N: Numbers, probability_N: Floats) -> dict[str, tuple[float, float]]:
        """What is logged: from the columns of switched tokens and of all tokens that are not special."""
        L = len(self.table.languages)
        switched_L = np.bincount(switched_N, minlength=L)
        drawn_L = np.bincount(words_N[words_N >= 0], minlength=L)
        sum_L = np.bincount(switched_N, weights=probability_N, minlength=L)
        log = {SWITCH_RATE: (float(len(switched_N)), float(len(words_N)))}
        log[PROBABILITY] = (float(sum_L.sum()), float(len(switched_N)))
        for language, column in self.languages.items():
            log[f"{SWITCH_RATE}/{language}"] = (float(switched_L[column]), float(drawn_L[column]))
            log[f"{PROBABILITY}/{language}"] = (float(sum_L[column]), float(switched_L[column]))
        return log


class _Draws:
    """Random numbers of a batch's tokens, as functions of (seed, epoch, purpose, example, view, position).

    ``alike`` puts the token's id in the place of its position, so that equal tokens of a sequence draw the same.
    """

    def __init__(self, batch: Batch, purpose: str, alike: bool) -> None:
        self.batch, self.purpose, self.alike = batch, purpose, alike
        self.sequence_T: Numbers = batch.layout.sequence_T.cpu().numpy()
        self.uid_B, self.view_B = batch.uid_B.cpu().numpy(), batch.view_B.cpu().numpy()
        self.index_T: Numbers = (batch.ids_T if alike else batch.layout.position_T).cpu().numpy()

    def of_tokens(self, what: str, at: Numbers | slice = slice(None)) -> Floats:
        """A number in [0, 1) for each of the tokens ``at``."""
        purpose = f"{self.purpose}/{what}{'/alike' if self.alike else ''}"
        row = self.sequence_T[at]
        batch, uid, view = self.batch, self.uid_B[row], self.view_B[row]
        return uniform(batch.seed, batch.epoch, purpose, uid, view, self.index_T[at])

    def surest_of_its_kind(self, at: Numbers, probability_N: Floats) -> Numbers | slice:
        """Of which token each of the tokens ``at`` takes the substitutions (numbers into ``at``).

        The model scores equal tokens by their contexts: with ``alike`` all go by the most probable one's.
        """
        if not self.alike or len(at) == 0:
            return slice(None)
        kind_N = (self.sequence_T[at] << 32) + self.index_T[at]
        order = np.lexsort((-probability_N, kind_N))  # stable: of equally probable ones the first
        new = np.r_[True, np.diff(kind_N[order]) != 0]
        surest_N: Numbers = np.empty(len(at), dtype=np.int64)
        surest_N[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(at)), 0))]
        return surest_N


def _of_examples(batch: Batch, purpose: str) -> Floats:
    """A number in [0, 1) for each sequence."""
    return uniform(batch.seed, batch.epoch, purpose, batch.uid_B.cpu().numpy(), batch.view_B.cpu().numpy())


def _index(languages: tuple[str, ...], language: str) -> int:
    if language not in languages:
        raise ValueError(f"the batch knows languages {languages}, the substitution table also {language!r}")
    return languages.index(language)
