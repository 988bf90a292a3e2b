"""The code that the documentation shows works."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from xsalt.batch import Batch, Layout
from xsalt.registry import REGISTRIES

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_entries", registry._entries.copy())
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "shown"}
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), names)
    return names


def test_the_task_shown_has_its_labels(shown: list[str]) -> None:
    run(next(code for code in shown if "class Emotion" in code))
    task = REGISTRIES["task"].get("emotion")
    assert (task.labels, task.columns) == (("joy", "anger", "fear"), ("text", "label"))


def test_the_augmenter_shown_masks_its_share_and_no_special_token(shown: list[str]) -> None:
    names = run(next(code for code in shown if "class Mask" in code))
    mask = names["Mask"](names["MaskConfig"](0.25), SimpleNamespace(tokenizer=SimpleNamespace(mask_id=4)))
    tokens, special_T = 400, torch.zeros(400, dtype=torch.bool)
    special_T[::100] = True
    batch = Batch(
        ids_T=torch.arange(10, 10 + tokens),
        type_T=torch.zeros(tokens, dtype=torch.int64),
        layout=Layout(np.full(4, 100)),
        uid_B=torch.arange(4),
        view_B=torch.zeros(4, dtype=torch.int64),
        label_B=torch.zeros(4, dtype=torch.int64),
        language_T=torch.zeros(tokens, dtype=torch.int64),
        languages=("en",),
        special_T=special_T,
        corpus_T=torch.arange(tokens),
        source_ids_T=torch.arange(10, 10 + tokens),
    )
    ids_T = mask.augment(batch).ids_T
    assert 60 < int((ids_T == 4).sum()) < 140
    assert not bool((ids_T == 4)[special_T].any())
    assert torch.equal(ids_T, mask.augment(batch).ids_T)
    assert mask.vocabulary_ids().tolist() == [4]
