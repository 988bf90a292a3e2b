"""How well a run's data is augmented, before it starts: ``RUN/augmentation.json`` and TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xsalt import distributed
from xsalt.augmenters.switching import PROBABILITY, SWITCH_RATE, SwitchConfig
from xsalt.checkpoint import atomic_file
from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import SubstitutionTable, write_json
from xsalt.distill.parallel import are_parallel, chrf_of_switching
from xsalt.logging import Board
from xsalt.protocols import Augmenter
from xsalt.randomness import permutation

if TYPE_CHECKING:
    from xsalt.training.run import Setup
    from xsalt.training.state import State
    from xsalt.training.trainer import Trainer

QUALITY = "augmentation.json"
EXAMPLES = 500
"""Examples that are augmented to measure: always the same ones of a training set and seed."""


def augmentation_quality(augmenters: Sequence[Augmenter], train: Dataset, seed: int) -> dict[str, Any]:
    """Figures of a fixed sample of the training set, augmented as in the first epoch, a curriculum at its end.

    ``switch_rate``: share of the tokens that are not special that was switched (by language: of those of the examples,
    or tokens, that drew it). ``coverage``: share of them that has an accepted substitution, whatever is drawn.
    ``mean_probability``: of the substitutions made. ``table``: fingerprint of the substitution table, a function of
    model, tokenizer, data and settings, so that runs with another one can be told. Empty if nothing in the run switches
    tokens.
    """
    sample = permutation(seed, 0, "augmentation/quality", len(train))[:EXAMPLES]
    source = train.batch(sample, seed=seed, epoch=0).with_(progress=math.inf)
    batch, covered, table = source, dict[str, tuple[float, float]](), None
    for augmenter in augmenters:
        batch = augmenter.augment(batch)
        table = table or getattr(augmenter, "table", None)
        covered |= getattr(augmenter, "coverage", lambda batch: {})(source)
    if not covered:
        return {}

    def mean(figures: Mapping[str, tuple[float, float]], name: str) -> float | None:
        total, count = figures.get(name, (0.0, 0.0))
        return round(total / count, 6) if count else None

    languages = {
        language: {
            "switch_rate": mean(batch.log, f"{SWITCH_RATE}/{language}"),
            "switched": int(batch.log.get(f"{SWITCH_RATE}/{language}", (0.0, 0.0))[0]),
            "coverage": mean(covered, language),
            "mean_probability": mean(batch.log, f"{PROBABILITY}/{language}"),
        }
        for language in covered
    }
    coverages = [row["coverage"] for row in languages.values() if row["coverage"] is not None]
    return {
        "examples": len(sample),
        "sequences": batch.layout.size,
        "tokens": int((~source.special_T).sum()),
        "switch_rate": mean(batch.log, SWITCH_RATE),
        "coverage": round(sum(coverages) / len(coverages), 6) if coverages else None,
        "mean_probability": mean(batch.log, PROBABILITY),
        "table": getattr(table, "fingerprint", None),
        "languages": languages,
    }


def chrf_of_dev(setup: Setup, table: SubstitutionTable, dev: Dataset, threshold: float) -> dict[str, dict[str, float]]:
    """``chrf_of_switching`` by language, where the dev sets are translations of each other row by row.

    ``table``: of ``dev``, the dev set of the source language. Several source languages have no figures.
    """
    if len(setup.source) > 1:
        return {}
    available = setup.task.languages("dev")
    rows = {language: setup.examples("dev", language) for language in setup.languages if language in available}
    source = rows.pop(setup.source[0], [])
    parallel = {language: others for language, others in rows.items() if are_parallel(source, others)}
    return chrf_of_switching(table, dev, setup.tokenizer, parallel, threshold, setup.config.train.seed)


def record_augmentation(
    setup: Setup, trainer: Trainer, state: State, table_of: Callable[[Dataset], SubstitutionTable]
) -> None:
    """Writes the file, and the figures by language to TensorBoard, unless the run has them or nothing is augmented.

    ``table_of``: makes the substitution table of a data set, for ``eval.chrf``.
    """
    path, options = setup.config.run / QUALITY, setup.config.train
    there = distributed.from_first(path.exists())
    quality = {} if there else augmentation_quality(trainer.augmenters, trainer.train, options.seed)
    if not quality:
        return
    if options.eval.chrf:
        dev = setup.read("dev", setup.source)
        nodes = [setup.config.node("augmenter", name) for name in setup.config.augmenters]
        threshold = next((node["threshold"] for node in nodes if "threshold" in node), SwitchConfig().threshold)
        table = table_of(dev)  # which ranks make together
        for language, figures in chrf_of_dev(setup, table, dev, threshold).items() if distributed.is_first() else ():
            quality["languages"].setdefault(language, {}).update(figures)
    if not distributed.is_first():
        return
    log = Board(setup.config.run)
    for language, figures in quality["languages"].items():
        for name, value in figures.items():
            if value is not None:
                log.scalar(f"augment/sample/{name}/{language}", value, state.update)
    log.close()
    with atomic_file(path) as new:  # last: a run that has it logs nothing again
        write_json(new, quality)
