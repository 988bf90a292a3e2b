"""A process that trains one run after the other: importing and compiling are paid once.

It reads a run from each line of its input and answers with its result, by the code that ``xsalt-train`` calls.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from xsalt.checkpoint import read_json
from xsalt.errors import UserError
from xsalt.training.run import pick_device, train
from xsalt_cli.front import compose
from xsalt_cli.train import SCRIPT


def train_one(words: list[str], folder: Path) -> dict[str, Any]:
    """Trains and evaluates; the run folder is gone afterwards.

    Returns what is worth keeping of it. Raises whatever ``xsalt-train`` would report.
    """
    began = time.monotonic()
    composed = compose(SCRIPT, [*words, f"run={folder}"])
    code = train(composed)
    if code:  # a signal asked the run to stop, and so the process
        raise SystemExit(code)
    results = read_json(folder / "results" / f"{composed.train.eval.split}.json")
    device = pick_device(composed.train.device)
    made = results["train"]
    kept = {
        "task": results["task"],
        "split": results["split"],
        "source_languages": results["source_languages"],
        "languages": results["languages"],
        "average": results["average"],
        "average_without_source": results["average_without_source"],
        "source_dev": made["best_score"],
        "best_update": made["best_update"],
        "updates": made["updates"],
        "train_s": made["wall_s"],
        "run_s": round(time.monotonic() - began, 1),
        "pairs_per_s": made["pairs_per_s"],
        "switch_rate": switch_rate(folder / "metrics.jsonl"),
        "table": table_of(folder / "augmentation.json"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": results["precision"],
        "config_hash": results["config_hash"],
        "versions": results["versions"],
    }
    shutil.rmtree(folder)
    return kept


def switch_rate(metrics: Path) -> float | None:
    """Mean share of switched tokens over the logged updates; None if nothing was switched."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rates = [row["switch_rate"] for row in rows if "switch_rate" in row]
    return round(sum(rates) / len(rates), 4) if rates else None


def table_of(quality: Path) -> str | None:
    """Fingerprint of the substitution table, which is a function of the encoder, the vocabularies and the text too."""
    found: str | None = read_json(quality).get("table") if quality.exists() else None
    return found


def answer(words: list[str], folder: Path) -> dict[str, Any]:
    """The result, or ``{"error": ...}`` in one line; a bug's traceback goes to the log."""
    try:
        return train_one(words, folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return {"error": " ".join(str(error).split())}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def end_with(parent: int) -> None:
    """Ends this process when its parent is gone, so that a killed list leaves no run behind to meet in its folder."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    threads, parent = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        found = answer(request["words"], Path(request["folder"]))
        sys.stdout.flush()
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
