"""SALT's code-switching: tokens are replaced by the substitutions that the model itself predicts (arXiv 2309.10891)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xsalt.augmenters.switching import SwitchConfig, Switcher
from xsalt.batch import Batch
from xsalt.protocols import Needs


@dataclass
class CodeSwitchConfig(SwitchConfig):
    pass


class CodeSwitch:
    """SALT: replace tokens by the model's own substitutions.

    Each example gets a target language (or each token one), drawn anew in each epoch. Position-preserving:
    ``source_ids_T`` and ``ids_T`` stay aligned one to one. With ``clean`` or several ``views`` there are several
    sequences of an example, with the same label. With ``ratio`` 0 the batch passes as it is. Evaluation never sees it.
    """

    Config = CodeSwitchConfig
    needs_table = True

    def __init__(self, config: CodeSwitchConfig, needs: Needs) -> None:
        self.switcher = Switcher(config, needs, "codeswitch")
        self.table = self.switcher.table

    def augment(self, batch: Batch) -> Batch:
        return self.switcher.switch(batch)

    def vocabulary_ids(self) -> np.ndarray:
        return self.switcher.vocabulary_ids()

    def coverage(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """What can be switched (``Switcher.coverage``)."""
        return self.switcher.coverage(batch)
