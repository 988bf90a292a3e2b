"""What each kind of component must offer. The built-ins have these shapes; so must plug-ins.

Every component class has a ``Config`` dataclass as an attribute (``class CodeSwitch: Config = CodeSwitchConfig``); its
fields are the command-line keys ``augmenter.codeswitch.FIELD``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from xsalt.batch import Batch, Layout
    from xsalt.data.dataset import Dataset, Example

FIRST = -1
"""Key of the last layer's states of the first tokens alone, h_BD, where nothing else of that layer is read."""
Hidden = Mapping[int, "Tensor"]
"""Layer number -> h_TD: 0 is the embedding layer's output, the number of layers is the last layer's."""


@dataclass(frozen=True)
class Loss:
    """Sum of a criterion's losses over what it counts (sequences, or predicted tokens), with figures to log.

    ``log``: name -> (sum, count), numbers or tensors of one; the trainer adds both over micro-batches and ranks and
    shows the quotient. Tensors are read when a line is logged, so that no update waits for the device.
    """

    loss_sum: Tensor
    log: dict[str, tuple[float | Tensor, float | Tensor]] = field(default_factory=dict)


class Task(Protocol):
    """Which data, which columns, which labels."""

    Config: ClassVar[type]
    labels: tuple[str, ...]

    def read(self, split: str, language: str) -> list[Example]: ...
    def languages(self, split: str) -> list[str]: ...


class Model(Protocol):
    """A multilingual encoder with a classifier and, where needed, an MLM head. An ``nn.Module``."""

    Config: ClassVar[type]

    def embed(self, batch: Batch) -> Tensor:
        """x_TD, mixed where the batch carries a mix."""

    def encode(self, x_TD: Tensor, layout: Layout, keep: Sequence[int] = (), last: int | None = None) -> Hidden:
        """Layers in ``keep`` and what ``classify`` reads; ``last`` stops after an earlier layer (None: run all)."""

    def weight_products(self, layout: Layout, keep: Sequence[int] = (), last: int | None = None) -> int:
        """Products of a weight and a number of a state in the matrix products of ``encode``: what MFU counts."""

    def classify(self, hidden: Hidden, layout: Layout) -> Tensor:
        """logits_BC, float32."""

    def mlm_logits(self, h_ND: Tensor, ids_V: Tensor | None = None) -> Tensor:
        """Logits of the vocabulary ids asked for (all ids if None), float32 of shape (N, V)."""


class Criterion(Protocol):
    """A training objective. ``weight`` multiplies its mean loss when several stand side by side."""

    Config: ClassVar[type]
    weight: float
    layers: Sequence[int]
    """Hidden layers that ``__call__`` reads itself; what ``classify`` reads is there anyhow."""
    # ``scores = False``, optional: in evaluation, without augmenters, there is nothing that it could predict

    def prepare(self, batch: Batch) -> Batch:
        """May add views or masks, before the forward pass and outside of it; usually returns the batch as it is."""

    def count(self, batch: Batch) -> int:
        """What the loss sum is divided by, known before the forward pass so that it can be summed over ranks."""

    def vocabulary_ids(self) -> np.ndarray:
        """Ids whose embedding rows the criterion may touch besides those of the batch."""

    def __call__(self, model: Any, hidden: Hidden, batch: Batch) -> Loss: ...


class Augmenter(Protocol):
    """Changes batches. ``augment`` works on ids; ``perturb`` (optional) on embeddings, inside the step."""

    Config: ClassVar[type]

    def augment(self, batch: Batch) -> Batch: ...
    def vocabulary_ids(self) -> np.ndarray:
        """Ids that the augmenter may put into a batch."""


@dataclass
class Needs:
    """What augmenters and criterions may ask for when they are built: ``Component(config, needs)``."""

    model: Any
    tokenizer: Any
    train: Dataset | None
    languages: Sequence[str]
    """Target languages, the codes that ``batch.languages`` holds (source languages first)."""
    source: Sequence[str]
    cache: Path
    device: str = "cpu"
    precision: str = "fp32"
    alone: bool = True
    """For criterions: whether this is the only one of the run."""
    augmenters: Mapping[str, Any] = field(default_factory=dict)
    """The run's augmenters in order: name -> its ``Config``, so that one can go by the keys of another."""
    table: Any = None
    """The opened ``SubstitutionTable``, for components with the attribute ``needs_table``."""
    vocabularies: Any = None
    """The ``LanguageVocabularies``, for components with the attribute ``needs_vocabularies``."""
