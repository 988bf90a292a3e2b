"""SALT's modified masked language modelling: predict only tokens of a specific target language (arXiv 2309.10891).

-log softmax over V_l instead of V, where l is the language of the predicted token. Logits outside of V_l are never
computed.

Shapes: T packed tokens, N predicted positions, V vocabulary of one language, L languages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xsalt.batch import Batch, MLMTargets, to_device
from xsalt.criterions.masked_lm import MaskedLM, MaskedLMConfig, true_ids
from xsalt.errors import UserError
from xsalt.fields import key
from xsalt.protocols import Needs
from xsalt.text.language_vocab import LanguageVocabularies


@dataclass
class TargetLanguageMLMConfig(MaskedLMConfig):
    predict: str = key(
        "present",
        "present: tokens as they stand, in their language; replaced: those that code-switching replaced, in the "
        "language of their sequence",
        choices=("present", "replaced"),
    )


class TargetLanguageMLM(MaskedLM):
    """Masked language modelling over the vocabulary of one language.

    A token can be predicted if it is in the vocabulary of its language; code-switched tokens have their target
    language's. What is masked, and where, is as in ``masked_lm``.

    With ``predict=replaced`` the switched tokens alone are predicted from, and what they replaced is predicted: text of
    language l switched to English teaches the way from English to l, with real text of l on the output side (the idea
    of back-translation; Sennrich, Haddow and Birch, ACL 2016, section 3).

    Raises:
        UserError: if no language has a vocabulary.
    """

    Config = TargetLanguageMLMConfig
    needs_vocabularies = True

    def __init__(self, config: TargetLanguageMLMConfig, needs: Needs) -> None:
        super().__init__(config, needs)
        vocabularies: LanguageVocabularies = needs.vocabularies
        self.ids = {language: ids.astype(np.int64) for language, ids in vocabularies.ids.items() if len(ids)}
        if not self.ids:
            raise UserError(
                "criterion target_language_mlm: no language has a vocabulary: give text with vocabulary.text=DIR"
            )
        self.languages = tuple(self.ids)
        self.replaced = config.predict == "replaced"
        self.scores = not self.replaced  # evaluation replaces nothing
        if self.replaced and needs.train is not None and not {"codeswitch", "mixup"} & set(needs.augmenters):
            raise UserError(
                "criterion.target_language_mlm.predict=replaced: nothing replaces tokens in this run: "
                "add --augmenter codeswitch"
            )
        self.trained = _languages_in_training(needs) & self.ids.keys()
        self.member_LV = np.zeros((len(self.languages) + 1, self.vocab_size), dtype=np.bool_)  # last: no vocabulary
        for index, language in enumerate(self.languages):
            self.member_LV[index, self.ids[language]] = True
        self._ids_V: dict[tuple[str, str], Tensor] = {}

    def vocabulary_ids(self) -> npt.NDArray[np.int64]:
        """The mask and the vocabularies of the languages that training meets; others are only ever evaluated."""
        parts = [self.ids[language] for language in sorted(self.trained)]
        return np.unique(np.concatenate([*parts, np.array([self.mask_id], dtype=np.int64)]))

    def predictable(self, batch: Batch) -> npt.NDArray[np.bool_]:
        none = len(self.languages)
        index_L = np.array(
            [self.languages.index(x) if x in self.ids else none for x in batch.languages], dtype=np.int64
        )
        id_T, language_T = self.true_tokens(batch)
        known_T: npt.NDArray[np.bool_] = self.member_LV[index_L[language_T.cpu().numpy()], id_T.cpu().numpy()]
        if self.replaced:
            known_T &= (true_ids(batch) != id_T).cpu().numpy()
        return known_T

    def true_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not self.replaced:
            return super().true_tokens(batch)
        layout = batch.layout  # special tokens are never switched: the first has the language of the sequence
        return batch.source_ids_T, batch.language_T[layout.first_B][layout.sequence_T]

    def groups(
        self, targets: MLMTargets, languages: tuple[str, ...], model: Any
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        device, language_N = targets.id_N.device, targets.language_N.cpu().numpy()
        for index in np.unique(language_N):
            members = to_device(torch.from_numpy(np.flatnonzero(language_N == index)), device)
            language = languages[index]
            ids_V = self._vocabulary(language, device)
            if language not in self.trained and not torch.is_grad_enabled():
                with torch.inference_mode(False):  # the rows are read in training too, if the batch has their ids
                    model.embeddings.word.grow(self.ids[language])
            yield members, ids_V, torch.searchsorted(ids_V, targets.id_N[members])

    def _vocabulary(self, language: str, device: torch.device) -> Tensor:
        if (language, str(device)) not in self._ids_V:
            with torch.inference_mode(False):  # training may read it later
                self._ids_V[language, str(device)] = torch.from_numpy(self.ids[language]).to(device)
        return self._ids_V[language, str(device)]


def _languages_in_training(needs: Needs) -> set[str]:
    """Languages that a training batch may hold: those of the data, and those that augmenters switch to."""
    if needs.train is None:
        return set(needs.languages)
    found = {needs.train.languages[int(index)] for index in np.unique(needs.train.language)}
    return found | set(needs.table.languages if needs.table is not None else ())
