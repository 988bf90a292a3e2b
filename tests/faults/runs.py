"""Runs that faults are made in, and what must come out of them whatever happened on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny import LISTS, TINY
from xsalt.batch import Batch
from xsalt.criterions.cross_entropy import CrossEntropy
from xsalt.protocols import Hidden, Loss

SPEEDS = {"tokens_per_s", "pairs_per_s", "mfu", "data_wait", "peak_memory_gb", "wall_s"}
"""Figures that no two runs share."""

SALT = [
    *("--augmenter", "codeswitch,mixup", "--criterion", "cross_entropy,consistency"),
    *LISTS,
    *("distill.layer=0", "augmenter.codeswitch.threshold=0", "augmenter.codeswitch.clean=true", "batch.accumulate=2"),
]
"""What has most to resume: switched views, mixing, consistency, accumulation; dropout is on by default."""


class Faulty(CrossEntropy):
    """Cross-entropy that does something at the Nth micro-batch trained with, and has no number for some examples:
    as their loss, or with ``gradient`` as its gradient alone."""

    at: ClassVar[dict[int, Callable[[], None]]] = {}
    bad: ClassVar[set[int]] = set()
    gradient: ClassVar[bool] = False
    trained: ClassVar[int] = 0

    def __call__(self, model: Any, hidden: Hidden, batch: Batch) -> Loss:
        loss = super().__call__(model, hidden, batch)
        if model.training:
            Faulty.trained += 1
            Faulty.at.pop(Faulty.trained, lambda: None)()
            if Faulty.bad & set(batch.uid_B.tolist()):
                nothing = loss.loss_sum * 0
                return Loss(loss.loss_sum + (nothing.sqrt() if Faulty.gradient else nothing / 0), loss.log)
        return loss


def command(data: Path, run: Path, *more: str) -> list[str]:
    """Arguments of ``xsalt-train``; keys that come later win."""
    return ["--task", "xnli", f"data.root={data}", f"run={run}", *TINY, "epochs=2", "log_every=1", *more]


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``, without speeds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in SPEEDS} for row in rows]


def board(run: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: tag -> update -> value, without speeds."""
    shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    tags = [tag for tag in shown.Tags()["scalars"] if tag.rpartition("/")[2] not in SPEEDS]
    return {tag: {event.step: event.value for event in shown.Scalars(tag)} for tag in tags}


def state(run: Path, name: str = "last") -> dict[str, Any]:
    """``state.json``, without speeds and the history of resuming."""
    found = json.loads((run / "checkpoints" / name / "state.json").read_text())
    return {k: v for k, v in found.items() if k not in {*SPEEDS, "steady_s", "resumed_from", "window"}}


def outcome(run: Path) -> dict[str, Any]:
    """All of a finished run that must be the same, bit by bit, whether it was interrupted or not."""
    results = json.loads((run / "results.json").read_text())
    results["train"] = {key: value for key, value in results["train"].items() if key not in SPEEDS}
    names = ["best/model.safetensors", "last/model.safetensors", "last/optimizer.safetensors"]
    files = {name: run / "checkpoints" / name for name in names}
    files |= {path.name: path for path in sorted((run / "predictions").iterdir())}
    return {
        "results": results,
        "copy": (run / "results" / "dev.json").read_bytes() == (run / "results.json").read_bytes(),
        "metrics": metrics(run),
        "tensorboard": board(run),
        "state": state(run),
        **{name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
    }
