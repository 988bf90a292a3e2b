"""Scores: that which chooses the checkpoint; and of every language after training, or by ``xsalt-eval``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xsalt import distributed
from xsalt.evaluation.evaluate import (
    accuracies_of_labels,
    accuracies_of_tokens,
    accuracy_of_labels,
    accuracy_of_tokens,
    averages,
    table,
    versions,
    write_predictions,
    write_results,
)
from xsalt.logging import Board, Progress, say
from xsalt.training.health import warn_at_chance

if TYPE_CHECKING:
    from xsalt.training.run import Setup
    from xsalt.training.state import State


def evaluate_languages(
    setup: Setup,
    model: Any,
    criterions: dict[str, Any],
    folder: Path,
    state: State | None,
    checkpoint: str = "best",
    finished: bool = True,
) -> dict[str, Any]:
    """Evaluates ``eval.split`` in the source and all target languages, and returns the results.

    Ranks share the work, so all must call this; rank 0 prints the table and writes the files.

    Args:
        finished: whether training has come to its end; results of a run that it has not don't end it.
    """
    config = setup.config
    options, split = config.train, config.train.eval.split
    available = setup.task.languages(split)
    languages = [language for language in setup.languages if language in available]
    if not languages:
        say(f"warning: {setup.task.where} has no {split} split in {', '.join(setup.languages)}: nothing is evaluated")
    by_label = bool(setup.task.labels) and any(getattr(c, "needs_labels", False) for c in criterions.values())
    if not by_label and not getattr(next(iter(criterions.values())), "scores", True):
        languages = []  # as was said when training began
    datasets = {language: setup.read(split, [language]) for language in languages}
    progress = Progress(sum(len(dataset) for dataset in datasets.values()), f"evaluating {split}", unit="example")
    arguments = (list(datasets.values()), setup.precision, setup.device, progress)
    if by_label:
        rows = accuracies_of_labels(model, *arguments)
    else:
        rows = accuracies_of_tokens(model, next(iter(criterions.values())), *arguments) if datasets else []
    progress.close()
    for language, row in zip(datasets, rows, strict=True):
        if not row.n and not by_label:
            say(f"warning: {language} has no token that a criterion predicts: it has no vocabulary, see xsalt-vocab")
    found = {language: row for language, row in zip(datasets, rows, strict=True) if by_label or row.n}
    results: dict[str, Any] = {
        "task": config.task,
        "split": split,
        "seed": options.seed,
        "source_language": ",".join(setup.source),
        "source_languages": list(setup.source),
        "measure": "label accuracy" if by_label else "accuracy of the predicted tokens",
        "languages": {language: {"accuracy": row.accuracy, "n": row.n} for language, row in found.items()},
        **averages({language: row.accuracy for language, row in found.items()}, setup.source),
        "checkpoint": checkpoint,
        "config_hash": config.hash,
        "precision": setup.precision,
        "skipped": dict(setup.task.skipped),
        "versions": versions(),
    }
    if not distributed.is_first():
        return results
    for language, row in found.items():
        if row.probability_NC is not None:
            path = folder / "predictions" / f"{split}-{language}.tsv"
            write_predictions(path, datasets[language], setup.task.labels, row.probability_NC)
    if state is not None:
        results["train"] = {
            "updates": state.update,
            "finished": finished,
            "examples": state.examples,
            "wall_s": round(state.wall_s, 3),
            "pairs_per_s": round(state.steady_examples / state.steady_s, 3) if state.steady_s else None,
            "skipped_updates": state.skipped_updates,
            "best_update": state.best_update,
            "best_score": state.best if math.isfinite(state.best) else None,
        }
        log = Board(folder)
        for language, row in found.items():
            log.scalar(f"{split}/accuracy/{language}", row.accuracy, state.update)
        if found:
            log.scalar(f"{split}/average", results["average"], state.update)
        log.close()
    write_results(folder, split, results)
    setup.tell_skipped()
    print(table(results, 1 / len(setup.task.labels) if by_label else None))
    return results


def source_score(setup: Setup, model: Any, criterions: dict[str, Any]) -> Any:
    """The score that chooses the checkpoint: accuracy on the *source* languages' dev set. None if the data has none."""
    languages = [language for language in setup.source if language in setup.task.languages("dev")]
    if not languages:
        say(f"warning: {setup.task.where} has no dev split in {', '.join(setup.source)}: the last checkpoint is kept")
        return None
    dataset = setup.read("dev", languages)
    if setup.task.labels and any(getattr(criterion, "needs_labels", False) for criterion in criterions.values()):

        def score() -> float:
            found = accuracy_of_labels(model, dataset, setup.precision, setup.device)
            return warn_at_chance(found.accuracy, found.n, dataset.label)

        return score
    criterion = next(iter(criterions.values()))
    if not getattr(criterion, "scores", True):
        say("the criterion predicts nothing in evaluation: the last checkpoint is kept")
        return None
    return lambda: accuracy_of_tokens(model, criterion, dataset, setup.precision, setup.device).accuracy
