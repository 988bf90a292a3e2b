"""Evaluation of all languages in one run, and the files that it leaves in the run folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xsalt import __version__, distributed
from xsalt.batch import IGNORE
from xsalt.checkpoint import atomic_file
from xsalt.data.batching import plan_batches
from xsalt.data.dataset import Dataset
from xsalt.logging import Progress
from xsalt.nn.inference import inference

EVALUATION_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens in an evaluation batch: large enough for the matrix products, small enough for memory."""


@dataclass(frozen=True)
class LanguageResult:
    """Accuracy (a fraction) over n counted rows, and the probabilities of the classes where the task has classes."""

    accuracy: float
    n: int
    probability_NC: np.ndarray | None = None


@contextmanager
def evaluation_mode(model: Any, precision: str, device: torch.device) -> Iterator[None]:
    """``inference`` in the precision asked for."""
    with inference(model), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


@dataclass(frozen=True)
class Share:
    """The evaluation batches of some data sets, and which of them are this rank's.

    All batches are the same ones for any number of ranks, since the width of a batch changes the last bits of its
    results. Those of all data sets are shared together: a single small one may have fewer than there are ranks.
    """

    batches: list[tuple[int, npt.NDArray[np.int64]]]
    """Number of the data set, numbers of its examples."""
    mine: list[int]

    @classmethod
    def of(cls, datasets: Sequence[Dataset], device: torch.device) -> Share:
        tokens = EVALUATION_TOKENS[device.type]
        batches = [
            (number, indices)
            for number, dataset in enumerate(datasets)
            for indices in plan_batches(dataset.lengths, max_tokens=tokens, shuffle=False)
        ]
        weights = [int(datasets[number].lengths[indices].sum()) for number, indices in batches]
        return cls(batches, distributed.my_share(weights))


def classify(
    model: Any, dataset: Dataset, precision: str, device: torch.device, progress: Progress | None = None
) -> np.ndarray:
    """probability_NC (float32) of every example, in the data set's order; ``classify_all`` of one data set."""
    return classify_all(model, [dataset], precision, device, progress)[0]


def classify_all(
    model: Any, datasets: Sequence[Dataset], precision: str, device: torch.device, progress: Progress | None = None
) -> list[np.ndarray]:
    """``classify`` of each data set. Ranks share the batches, and all get all rows; all must call this."""
    for dataset in datasets:
        model.embeddings.word.grow(np.unique(dataset.ids))
    share, parts = Share.of(datasets, device), dict[int, torch.Tensor]()
    with evaluation_mode(model, precision, device):
        for place in share.mine:
            number, indices = share.batches[place]
            batch = datasets[number].batch(indices, seed=0, epoch=0).to(device)
            hidden = model.encode(model.embed(batch), batch.layout)
            parts[place] = model.classify(hidden, batch.layout).float().softmax(-1)
            if progress is not None:
                progress.step(len(indices))
    rows: dict[int, np.ndarray] = {}
    for of_rank in distributed.from_all({place: part.cpu().numpy() for place, part in parts.items()}):
        rows |= of_rank
    classes = rows[0].shape[1] if rows else 0
    found = [np.zeros((len(dataset), classes), dtype=np.float32) for dataset in datasets]
    for place, (number, indices) in enumerate(share.batches):
        found[number][indices] = rows[place]
    return found


def accuracy_of_labels(model: Any, dataset: Dataset, precision: str, device: torch.device) -> LanguageResult:
    """Share of the labelled examples whose most probable class is theirs, the same on all ranks; all must call this."""
    return accuracies_of_labels(model, [dataset], precision, device)[0]


def accuracies_of_labels(
    model: Any, datasets: Sequence[Dataset], precision: str, device: torch.device, progress: Progress | None = None
) -> list[LanguageResult]:
    """``accuracy_of_labels`` of each data set."""
    found = []
    for dataset, probability_NC in zip(
        datasets, classify_all(model, datasets, precision, device, progress), strict=True
    ):
        counted = dataset.label != IGNORE
        right = (probability_NC.argmax(-1) == dataset.label) & counted
        found.append(LanguageResult(float(right.sum() / max(1, counted.sum())), int(counted.sum()), probability_NC))
    return found


def accuracy_of_tokens(
    model: Any, criterion: Any, dataset: Dataset, precision: str, device: torch.device
) -> LanguageResult:
    """Share of the positions picked by a masked-language criterion whose token it predicts, always the same ones; the
    same on all ranks, and all must call this."""
    return accuracies_of_tokens(model, criterion, [dataset], precision, device)[0]


def accuracies_of_tokens(
    model: Any,
    criterion: Any,
    datasets: Sequence[Dataset],
    precision: str,
    device: torch.device,
    progress: Progress | None = None,
) -> list[LanguageResult]:
    """``accuracy_of_tokens`` of each data set."""
    for dataset in datasets:
        model.embeddings.word.grow(np.union1d(np.unique(dataset.ids), criterion.vocabulary_ids()))
    share = Share.of(datasets, device)
    right: list[float | torch.Tensor] = [0.0] * len(datasets)
    counted: list[float | torch.Tensor] = [0.0] * len(datasets)
    with evaluation_mode(model, precision, device):
        for number, indices in (share.batches[place] for place in share.mine):
            batch = criterion.prepare(datasets[number].batch(indices, seed=0, epoch=0)).to(device)
            hidden = model.encode(model.embed(batch), batch.layout, keep=criterion.layers, last=max(criterion.layers))
            good, n = criterion(model, hidden, batch).log["accuracy"]
            right[number], counted[number] = right[number] + good, counted[number] + n
            if progress is not None:
                progress.step(len(indices))
    sums = distributed.sum_over_ranks([float(value) for value in (*right, *counted)])
    pairs = zip(sums[: len(datasets)], sums[len(datasets) :], strict=True)
    return [LanguageResult(good / max(1.0, n), int(n)) for good, n in pairs]


def averages(accuracies: Mapping[str, float], source: Sequence[str]) -> dict[str, float | None]:
    """Macro-averages over languages, with and without the source languages."""
    others = [value for language, value in accuracies.items() if language not in source]
    return {
        "average": float(np.mean(list(accuracies.values()))) if accuracies else None,
        "average_without_source": float(np.mean(others)) if others else None,
    }


def versions() -> dict[str, str]:
    """What made the numbers."""
    return {
        "xsalt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with atomic_file(path) as new:
        new.write_text(text, encoding="utf-8")


def write_predictions(path: Path, dataset: Dataset, labels: Sequence[str], probability_NC: np.ndarray) -> None:
    """``uid, gold, predicted``, then a probability column for each label, in the data's order."""
    rows = ["\t".join(["uid", "gold", "predicted", *labels])]
    for uid, gold, probability_C in zip(dataset.uids, dataset.label, probability_NC, strict=True):
        predicted = labels[int(probability_C.argmax())]
        named = labels[int(gold)] if gold != IGNORE else "-"
        rows.append("\t".join([uid, named, predicted, *(f"{p:.6f}" for p in probability_C)]))
    write_text(path, "\n".join(rows) + "\n")


def write_results(folder: Path, split: str, results: Mapping[str, Any]) -> None:
    """``results/SPLIT.json`` and its copy ``results.json``; the former is last: it says that a run is finished."""
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / "results.json", text)
    write_text(folder / "results" / f"{split}.json", text)


def table(results: Mapping[str, Any], chance: float | None) -> str:
    """The result of every language as lines for a terminal; accuracies near chance are flagged."""
    lines = [f"{results['task']} {results['split']}: {results['measure']} by language (%)"]
    for language, row in results["languages"].items():
        # two standard errors of a coin with that chance: below, the model has learnt nothing that shows
        near = chance is not None and row["accuracy"] <= chance + 2 * (chance * (1 - chance) / max(1, row["n"])) ** 0.5
        mark = "  (source)" if language in results["source_languages"] else ""
        lines.append(f"  {language:8s} {100 * row['accuracy']:6.2f}  n={row['n']}{mark}{'  at chance' if near else ''}")
    if results["average"] is not None:
        lines.append(f"  {'average':8s} {100 * results['average']:6.2f}")
    if results["average_without_source"] is not None:
        lines.append(f"  {'without source':15s} {100 * results['average_without_source']:.2f}")
    return "\n".join(lines)
