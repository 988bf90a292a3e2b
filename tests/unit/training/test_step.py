"""One step: gradients do not depend on how the batch was split."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import LISTS, TINY, write_nli
from xsalt.config import Composed
from xsalt.nn.dropout import set_dropout_key
from xsalt.training.resume import Checkpoints
from xsalt.training.run import Setup, prepare
from xsalt.training.state import State
from xsalt.training.trainer import Trainer, due
from xsalt_cli.front import compose
from xsalt_cli.train import SCRIPT


def configuration(tmp_path: Path, *more: str) -> Composed:
    data = write_nli(tmp_path / "data", train=48, dev=9)
    return compose(
        SCRIPT, ["--task", "xnli", f"data.root={data}", f"run={tmp_path / 'run'}", "dropout=0", *TINY, *LISTS, *more]
    )


def trainer(config: Composed) -> Trainer:
    torch.manual_seed(0)
    made, _ = prepare(Setup.open(config), Checkpoints(config.run, config))
    made.step.double()
    return made


@pytest.mark.parametrize(
    "criterion", ["cross_entropy", "target_language_mlm", "masked_lm", "cross_entropy,consistency"]
)
def test_a_step_reads_nothing_from_the_device(criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA each reading waits for all work before it. Tensors on ``meta`` raise where a number is read."""
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    views = ("--augmenter", "codeswitch", "augmenter.codeswitch.clean=true") if "consistency" in criterion else ()
    made = trainer(configuration(tmp_path, "--criterion", criterion, *views, "dropout=0.1"))
    step, batch = made.step.float().to("meta"), made.draw(np.arange(6), 0, 0.0)
    made.step.model.embeddings.word.sparse_gradient = False  # as it is off the CPU
    own, placed = step.count(batch), batch.to(torch.device("meta"))
    set_dropout_key(step, 1, 0, placed)
    loss, figures = step(placed, own, own)
    loss.backward()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        float(loss)
    assert {name for name in figures if "loss" in name}


@pytest.mark.parametrize("criterion", ["cross_entropy", "target_language_mlm", "cross_entropy,target_language_mlm"])
def test_gradients_are_those_of_one_big_batch_however_it_is_split(
    criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    made = trainer(configuration(tmp_path, "--criterion", criterion))
    names = list(made.step.criterions)
    whole = [np.arange(20)]
    parts = [np.arange(3), np.arange(3, 4), np.arange(4, 20)]
    gradients = []
    for split in (whole, parts):
        made.step.zero_grad()
        batches = [made.draw(indices, 0, 0.0) for indices in split]
        counts = {name: float(sum(made.step.criterions[name].count(batch) for batch in batches)) for name in names}
        assert all(count > 0 for count in counts.values())
        for batch in batches:
            loss, _ = made.step(batch, counts)
            loss.backward()
        gradients.append({n: p.grad.clone() for n, p in made.step.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(g.abs().max()) for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        # logits are float32 by contract, so sums in another order differ in float32's last digits
        assert float((gradient - gradients[1][name]).abs().max()) <= 2e-6 * largest, name


@pytest.mark.parametrize("criterion", ["target_language_mlm", "masked_lm", "consistency"])
def test_each_criterions_mean_loss_counts_by_its_weight(
    criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    weights = {"cross_entropy": 0.5, criterion: 3.0}
    keys = [f"criterion.{name}.weight={weight}" for name, weight in weights.items()]
    views = ["--augmenter", "codeswitch", "augmenter.codeswitch.clean=true", "augmenter.codeswitch.threshold=0"]
    made = trainer(configuration(tmp_path, "--criterion", ",".join(weights), *views, *keys))
    batch = made.draw(np.arange(20), 0, 0.0)
    counts = made.step.count(batch)
    total, figures = made.step(batch, counts)
    means = {name: float(figures[f"{name}_loss"][0]) / counts[name] for name in weights}
    assert all(mean > 0 for mean in means.values())
    assert float(total.detach()) == pytest.approx(0.5 * means["cross_entropy"] + 3.0 * means[criterion], rel=1e-6)


def test_the_epochs_plan_is_a_function_of_seed_and_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path / "cache"))
    made = trainer(configuration(tmp_path, "batch.accumulate=2"))
    first, again, other = made.plan(0), made.plan(0), made.plan(1)
    flat = [[i for micro in update for i in micro.tolist()] for update in first]
    assert sorted(i for update in flat for i in update) == list(range(48))
    assert flat == [[i for micro in update for i in micro.tolist()] for update in again]
    assert flat != [[i for micro in update for i in micro.tolist()] for update in other]
    assert made.total_updates() == 2 * len(first)  # two epochs is the default


def test_something_is_due_every_n_updates_or_at_the_end_of_an_epoch() -> None:
    assert due(10, 5, False) and not due(11, 5, True)
    assert due(11, None, True) and not due(10, None, False)


def test_the_state_moves_to_the_next_epoch_once() -> None:
    state = State(update=5, epoch=0, in_epoch=5)
    state.count(16, 0.1, of_epoch=6)
    assert (state.update, state.epoch, state.in_epoch) == (6, 1, 0)
    state.count(16, 0.1, of_epoch=6)
    assert (state.update, state.epoch, state.in_epoch) == (7, 1, 1)
