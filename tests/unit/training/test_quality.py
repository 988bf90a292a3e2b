"""What a run folder says of its augmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny import LISTS, TINY, write_nli
from tests.unit.training.test_step import configuration, trainer
from xsalt.randomness import permutation
from xsalt.training.quality import augmentation_quality
from xsalt.training.trainer import Trainer
from xsalt_cli.train import main

KEYS = ["distill.layer=0", "distill.k=3", "augmenter.codeswitch.threshold=0", "augmenter.codeswitch.clean=true"]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    return trainer(configuration(tmp_path, "--augmenter", "codeswitch,mixup", *KEYS))


def test_figures_are_those_of_the_sample_counted_token_by_token(made: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xsalt.training.quality.EXAMPLES", 20)
    quality = augmentation_quality(made.augmenters, made.train, 1)
    sample = permutation(1, 0, "augmentation/quality", len(made.train))[:20]
    table = made.augmenters[0].switcher.table  # type: ignore[attr-defined]
    batch = made.draw(sample, 0, 0.0)
    assert batch.mix is not None and quality["table"] == table.fingerprint
    word_T = ~batch.special_T.numpy()
    new_T = (batch.mix.other_ids_T != batch.source_ids_T).numpy()
    corpus_N = batch.corpus_T.numpy()[: len(batch.ids_T) // 2]
    words = int(word_T.sum()) // 2  # of each view: the clean one and the switched one
    assert (quality["examples"], quality["sequences"], quality["tokens"]) == (20, 40, words)
    assert quality["switch_rate"] == pytest.approx(new_T.sum() / words, abs=1e-6)
    assert 0.1 < quality["switch_rate"] < 0.6
    probabilities, coverages = [], []
    for language in ("fr", "ru"):
        column, index = table.languages.index(language), batch.languages.index(language)
        at = np.flatnonzero(new_T & (batch.language_T == index).numpy())
        probability_N = table.probability_NLK[batch.corpus_T.numpy()[at], column, 0].astype(np.float64)
        ids_N, all_N = table.ids_NLK[corpus_N, column, 0], table.probability_NLK[corpus_N, column, 0]
        source_N = batch.source_ids_T.numpy()[: len(corpus_N)]
        covered = (all_N.astype(np.float32) >= 0) & (ids_N >= 0) & (ids_N != source_N) & word_T[: len(corpus_N)]
        row = quality["languages"][language]
        assert row["switched"] == len(at)
        assert row["coverage"] == pytest.approx(covered.sum() / words, abs=1e-6)
        assert row["mean_probability"] == pytest.approx(probability_N.mean(), abs=1e-5)
        assert 0.1 < row["switch_rate"] < row["coverage"] < 1
        probabilities.append(probability_N)
        coverages.append(covered.sum() / words)
    assert quality["mean_probability"] == pytest.approx(np.concatenate(probabilities).mean(), abs=1e-5)
    assert quality["coverage"] == pytest.approx(np.mean(coverages), abs=1e-6)


def test_a_run_without_switching_has_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    made = trainer(configuration(tmp_path))
    assert augmentation_quality(made.augmenters, made.train, 1) == {}


def test_a_curriculum_is_measured_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    keys = ["--augmenter", "codeswitch", "distill.layer=0", "augmenter.codeswitch.threshold=0"]
    plain = trainer(configuration(tmp_path, *keys))
    grown = trainer(configuration(tmp_path, *keys, "augmenter.codeswitch.ratio_epochs=5"))
    assert augmentation_quality(grown.augmenters, grown.train, 1) == augmentation_quality(
        plain.augmenters, plain.train, 1
    )


def run(tmp_path: Path, *more: str) -> Any:
    data = write_nli(tmp_path / "data", train=48, dev=9)
    folder = tmp_path / "run"
    assert main(["--task", "xnli", f"data.root={data}", f"run={folder}", "epochs=1", *TINY, *LISTS, *more]) == 0
    return json.loads((folder / "augmentation.json").read_text()) if (folder / "augmentation.json").exists() else None


def test_the_run_folder_and_tensorboard_have_the_figures_with_chrf_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    quality = run(tmp_path, "--augmenter", "codeswitch,mixup", "eval.chrf=true", *KEYS)
    assert set(quality["languages"]) == {"fr", "ru"}
    assert quality["languages"]["ru"]["chrf_switched"] >= quality["languages"]["ru"]["chrf_source"] == 0
    assert quality["languages"]["fr"]["chrf_switched"] > 0 < quality["languages"]["fr"]["chrf_source"]
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for language, row in quality["languages"].items():
        for name, value in ((name, value) for name, value in row.items() if value is not None):
            assert board.Scalars(f"augment/sample/{name}/{language}")[0].value == pytest.approx(value)


def test_without_switching_or_without_being_asked_there_is_no_file_or_no_chrf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    assert run(tmp_path / "none") is None
    quality = run(tmp_path / "some", "--augmenter", "mixup", "distill.layer=0", "augmenter.mixup.threshold=0")
    assert quality["switch_rate"] > 0.2
    assert all("chrf_source" not in row for row in quality["languages"].values())
