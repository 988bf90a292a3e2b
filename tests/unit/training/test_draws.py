"""A run draws the same augmentations however its batches are cut, read ahead or resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.augmenters.test_purity import Found, by_sequence
from tests.unit.training.test_step import configuration, trainer
from xsalt.training.state import State
from xsalt.training.trainer import Trainer

SALT = ["--augmenter", "codeswitch,mixup", "--criterion", "cross_entropy,consistency", "distill.layer=0", "distill.k=3"]
OPTIONS = {
    "sampled views": ["choose=sample", "threshold=0", "clean=true", "views=2"],
    "tokens alike": ["language_by=token", "segments=alike", "threshold=0", "clean=true", "sampling=nearest"],
}
MIXUP = {"sampled views": ["between=views", "where=after"], "tokens alike": ["by=token", "alpha=0.5"]}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))


def made(tmp_path: Path, name: str, *more: str) -> Trainer:
    keys = [f"augmenter.codeswitch.{key}" for key in OPTIONS[name]] + [f"augmenter.mixup.{key}" for key in MIXUP[name]]
    return trainer(configuration(tmp_path, *SALT, *keys, *more))


def drawn(trainer: Trainer, state: State) -> list[dict[int, Found]]:
    """For each update from the state on: epoch -> (example, view) -> what was drawn."""
    found = []
    total = trainer.total_updates()
    for update in trainer.updates(state, total):
        found.append({state.epoch: {k: v for batch in update.batches for k, v in by_sequence(batch).items()}})
        state.count(update.examples, 0.0, update.of_epoch)
        if state.update == total:
            break
    return found


def together(found: list[dict[int, Found]]) -> dict[int, Found]:
    epochs: dict[int, Found] = {}
    for update in found:
        for epoch, of_epoch in update.items():
            epochs.setdefault(epoch, {}).update(of_epoch)
    return epochs


@pytest.mark.parametrize("name", OPTIONS)
def test_draws_do_not_depend_on_the_batch_size_nor_on_where_a_run_was_resumed(name: str, tmp_path: Path) -> None:
    whole = drawn(made(tmp_path, name, "batch.size=16"), State())
    epochs = together(whole)
    assert set(epochs) == {0, 1}
    assert {uid for uid, _ in epochs[0]} == set(range(48))
    assert epochs[0] != epochs[1]
    for keys in (["batch.size=5"], ["batch.max_tokens=70"], ["batch.size=4", "batch.accumulate=3"]):
        assert together(drawn(made(tmp_path, name, *keys), State())) == epochs
    resumed = drawn(made(tmp_path, name, "batch.size=16"), State(update=4, epoch=1, in_epoch=1))
    assert resumed == whole[4:]


def test_clean_views_stay_clean_with_views_mixup_and_consistency_together(tmp_path: Path) -> None:
    for name, views in (("sampled views", 3), ("tokens alike", 2)):
        trainer = made(tmp_path, name)
        batch = trainer.draw(trainer.plan(0)[0][0], 0, 0.0)
        assert batch.mix is not None
        assert set(batch.view_B.tolist()) == set(range(views))
        clean_T = (batch.view_B == 0)[batch.layout.sequence_T]
        for ids_T in (batch.ids_T, batch.mix.other_ids_T):
            assert (ids_T[clean_T] == batch.source_ids_T[clean_T]).all()
        assert (batch.mix.other_ids_T[~clean_T] != batch.source_ids_T[~clean_T]).any()
        examples = len(set(batch.uid_B.tolist()))
        assert trainer.step.criterions["consistency"].count(batch) == (views - 1) * examples
        model = trainer.step.model
        plain_TD = model.embed(batch.with_(ids_T=batch.source_ids_T, mix=None))
        assert (model.embed(batch)[clean_T] == plain_TD[clean_T]).all()
