"""What the ranks of these tests run: ``worker.py FUNCTION ARGUMENTS``."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.unit.distill import tiny
from tests.unit.distill.test_anchors import plain
from xsalt import distributed
from xsalt.config_distill import DistillConfig
from xsalt.distill import build
from xsalt.distill.table import build_table

LANGUAGES = ("fr", "it", "en")
SETTINGS: dict[str, dict[str, Any]] = {
    "lens": {"method": "lens"},
    "head": {"method": "mlm", "k": 2},
    "anchors": {"method": "anchors", "layer": 2},
    "words": {"method": "lens", "whole_words": True, "shortlist": 0},
}


def small_spans(span: int = 8) -> None:
    build.SPAN, build.BLOCK = span, 4


def tables(folder: Path, in_flight: int) -> None:
    """A table by each of the SETTINGS, with synonyms, of 70 examples in 9 spans."""
    small_spans()
    tokenizer = tiny.make_tokenizer()
    vocabularies = tiny.make_vocabularies(tokenizer)
    with distributed.first_alone():
        data, texts = tiny.make_dataset(tokenizer, folder / "cache"), plain(tokenizer, folder / "cache")
    for name, keys in SETTINGS.items():
        build_table(
            tiny.make_model(tokenizer, name == "head"),
            tokenizer,
            data,
            LANGUAGES,
            vocabularies,
            DistillConfig(temperature=0.1, **keys),
            keys["method"],
            folder / name,
            f"fingerprint of {name}",
            ("en",),
            in_flight,
            texts if name == "anchors" else None,
        )


def tell(*words: object) -> None:
    """A line on stdout, in one piece: ``print`` may write word by word, and ranks share the pipe."""
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


def halting_table(folder: Path) -> None:
    """A table; each rank says its process, the parts that are there, and what it scored. Before it was started again,
    rank 1 halts after two spans, to be killed."""
    small_spans()
    write, first_start = build.Parts.write, os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    there = [part.stem for part in folder.glob(".lens-parts/*.part")]
    tell("start", distributed.rank(), os.getpid(), *there)
    distributed.wait_for_all()
    written = []

    def told(self: Any, span: int, *arrays: Any) -> None:
        write(self, span, *arrays)
        tell("span", span, distributed.rank())
        written.append(span)
        if first_start and distributed.rank() == 1 and len(written) == 2:
            time.sleep(600)

    build.Parts.write = told  # type: ignore[method-assign]
    tokenizer = tiny.make_tokenizer()
    with distributed.first_alone():
        data = tiny.make_dataset(tokenizer, folder / "cache")
    given = (tiny.make_vocabularies(tokenizer), DistillConfig(temperature=0.1), "lens")
    build_table(
        tiny.make_model(tokenizer), tokenizer, data, LANGUAGES, *given, folder / "lens", "fingerprint of lens", ("en",)
    )


def scripts(*jobs: str) -> None:
    """Command lines in JSON, each one of the console scripts with its arguments, one after the other."""
    for job in jobs:
        name, *words = json.loads(job)
        code = importlib.import_module(f"xsalt_cli.{name}").main(words)
        assert code == 0, job


def script(name: str, *words: str) -> None:
    """One of the console scripts, which itself joins the ranks; ``XSALT_CACHE`` may differ by rank."""
    os.environ["XSALT_CACHE"] = os.environ["XSALT_CACHE"].replace("{rank}", os.environ["RANK"])
    sys.argv = [name, *words]
    sys.exit(importlib.import_module(f"xsalt_cli.{name}").main())


if __name__ == "__main__":
    torch.set_num_threads(1)
    function, *arguments = sys.argv[1:]
    if function == "script":
        script(*arguments)
    with distributed.joined():
        if function == "tables":
            tables(Path(arguments[0]), int(arguments[1]))
        elif function == "halting_table":
            halting_table(Path(arguments[0]))
        else:
            scripts(*arguments)
    os._exit(0)  # as a script's rank does: threads of gloo live on
