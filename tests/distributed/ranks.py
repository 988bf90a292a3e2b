"""What the ranks of these tests do: real processes that talk over loopback. ``launch`` starts them.

Each rank goes through ``Setup``, ``prepare`` and the loop as ``xsalt-train`` does, and leaves what it saw in
``FOLDER/NAME-WORLD-RANK.npz``, from which several tests read.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import LISTS, TINY
from xsalt import distributed, parallel
from xsalt.nn.dropout import set_dropout_key
from xsalt.nn.inference import inference
from xsalt.training.resume import Checkpoints
from xsalt.training.run import Setup, prepare
from xsalt.training.state import State
from xsalt.training.trainer import Agreed
from xsalt_cli.front import compose
from xsalt_cli.train import SCRIPT

SALT = [
    "--task=xnli",
    "--augmenter=codeswitch,mixup",
    "--criterion=cross_entropy,consistency,target_language_mlm",
    "augmenter.codeswitch.clean=true",
    "augmenter.codeswitch.threshold=0",
    "distill.layer=0",
    *LISTS,
    *TINY,
    "batch.size=10",
    "batch.accumulate=2",
    "dropout=0.2",
    "checkpoint.keep=none",
]
"""Two views, a mix, masked copies and an accumulation: every way for ranks to see different counts."""
UPDATES = 50


def launch(ranks: int, does: Callable[..., None], *args: Any) -> None:
    """Runs ``does(*args)`` on so many ranks, each a process of its own, and waits for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.ranks"])
    started = [context.Process(target=_rank, args=(rank, ranks, port, does, *args)) for rank in range(ranks)]
    for process in started:
        process.start()
    end = time.monotonic() + 180
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()  # one that waits for another without end
        process.join()
    assert [process.exitcode for process in started] == [0] * ranks


def _rank(rank: int, ranks: int, port: int, does: Callable[..., None], *args: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with distributed.joined():
        does(*args)


def work(folder: Path, data: Path) -> None:
    """All of ``WORK``, one after the other."""
    ranks, rank = distributed.world_size(), distributed.rank()
    for name, (does, keys) in WORK.items():
        if ranks not in RANKS.get(name, (ranks,)):
            continue
        np.savez(folder / f"{name}-{ranks}-{rank}.npz", **does(data, folder / f"run-{name}-{ranks}", *keys))


def prepared(data: Path, run: Path, *keys: str, joined: bool = True) -> Any:
    """The trainer of a run, as ``xsalt-train`` makes it; not ``joined``: its step is still each rank's own."""
    config = compose(SCRIPT, [*SALT, f"data.root={data}", f"run={run}", *keys])
    setup = Setup.open(config)
    torch.manual_seed(config.train.seed)
    checkpoints = Checkpoints(config.run, config)
    checkpoints.tokenizer, checkpoints.labels = setup.tokenizer, tuple(setup.task.labels)
    with pytest.MonkeyPatch.context() as patch:
        if not joined:
            patch.setattr(parallel, "in_parallel", lambda step, *_, **__: parallel.Alone(step))
        trainer, _ = prepare(setup, checkpoints)
    run.mkdir(exist_ok=True)
    return trainer


def draws(data: Path, run: Path, *keys: str) -> dict[str, np.ndarray]:
    """Two epochs as this rank draws them: every sequence by its update, micro-batch, example and view."""
    trainer = prepared(data, run, *keys)
    found: dict[str, np.ndarray] = {}
    state = State()
    total = 2 * len(trainer.plan(0))
    for drawn in trainer.updates(state, total):
        for number, batch in enumerate(drawn.batches):
            if batch is None:
                continue
            offsets = batch.layout.offsets
            predicted = np.full(batch.layout.tokens, -1)
            predicted[batch.mlm.position_N.numpy()] = batch.mlm.id_N.numpy()
            for row, (uid, view) in enumerate(zip(batch.uid_B.tolist(), batch.view_B.tolist(), strict=True)):
                own = slice(offsets[row], offsets[row + 1])
                key = f"{state.epoch}/{state.in_epoch}/{number}/{uid}/{view}"
                assert f"{key}/ids" not in found
                found[f"{key}/ids"] = batch.ids_T[own].numpy()
                found[f"{key}/other"] = batch.mix.other_ids_T[own].numpy()
                found[f"{key}/r"] = batch.mix.r[row].numpy()
                found[f"{key}/predicted"] = predicted[own]
                found[f"{key}/label"] = batch.label_B[row].numpy()
        found[f"{state.epoch}/{state.in_epoch}/tokens"] = np.array(
            [sum(batch.layout.tokens for batch in drawn.batches if batch is not None)]
        )
        state.count(drawn.examples, 0.0, drawn.of_epoch)
        if state.update == total:
            break
    return found


def gradients(data: Path, run: Path, *keys: str) -> dict[str, np.ndarray]:
    """The gradient of the first update in float64, with dropout."""
    trainer = prepared(data, run, *keys, joined=False)
    model = trainer.step.model.double()
    model.train()
    encoder = model.encoder if trainer.config.distributed.engine == "fsdp" else None
    joined_step = parallel.in_parallel(trainer.step, model.embeddings.word.weight, None, encoder)  # anew, in float64
    drawn = next(trainer.updates(State(), 1))
    counted = [trainer.step.count(batch) for batch in drawn.batches]
    agreed = Agreed.by_all(counted, 1, None)
    for number, (batch, own) in enumerate(zip(drawn.batches, counted, strict=True)):
        if batch is not None:
            batch = batch.with_(mix=batch.mix and replace(batch.mix, r=batch.mix.r.double()))
            set_dropout_key(model, 1, 0, batch)
        with joined_step.accumulating() if number + 1 < len(counted) else nullcontext():
            loss, _ = joined_step(batch, agreed.counts, own)
            if loss.requires_grad:
                loss.backward()
    joined_step.finish()
    found = {
        name: (p.grad.to_dense() if p.grad.is_sparse else parallel.whole(p.grad)).numpy()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return found | {f"count/{name}": np.array(value) for name, value in agreed.counts.items()}


def updates(data: Path, run: Path, *keys: str) -> dict[str, np.ndarray]:
    """Weights before and after 50 updates in float32, with dropout."""
    trainer = prepared(data, run, *keys)
    engine = type(trainer.parallel).__name__
    weights = dict(trainer.step.model.named_parameters())
    before = {f"before/{name}": parallel.whole(value.detach()).clone().numpy() for name, value in weights.items()}
    state = trainer.fit(State())
    model, batch = trainer.step.model, trainer.train.batch(np.arange(8))
    with inference(model):  # ranks have shares of their own to evaluate, not the same number of batches
        for _ in range(distributed.rank() + 1):
            logits_BC = model.classify(model.encode(model.embed(batch), batch.layout), batch.layout)
    after = {f"after/{name}": parallel.whole(value.detach()).clone().numpy() for name, value in weights.items()}
    moments = {
        f"{key}/{name}": parallel.whole(trainer.optimizer.state[value][key]).numpy()
        for name, value in weights.items()
        for key in ("exp_avg", "exp_avg_sq")
        if key in trainer.optimizer.state[value]
    }
    more = {"best": np.array([state.best, state.best_update]), "logits": logits_BC.numpy(), "engine": np.array(engine)}
    return before | after | moments | more


def updates_by_sockets(data: Path, run: Path, *keys: str) -> dict[str, np.ndarray]:
    """``updates`` where the system lends ranks no memory to share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "shared_tensors", lambda _: None)
        return updates(data, run, *keys)


RANKS = {"updates-sockets": (2,), "little": (1, 4), "updates": (1, 2, 4), "gradients-fsdp": (3,), "updates-fsdp": (3,)}
"""Where not all numbers of ranks are needed. FSDP's divides few sizes, and one process has nothing to split."""
TRAINED = [f"max_updates={UPDATES}", "log_every=25", "eval.every=25", "optim.lr=1e-3"]
WORK: dict[str, tuple[Any, list[str]]] = {
    "draws": (draws, []),
    "gradients": (gradients, []),
    "little": (
        gradients,
        [
            "--criterion=target_language_mlm",
            "criterion.target_language_mlm.mask_rate=0.01",
            "freeze=[embeddings,encoder]",
            "batch.size=6",
        ],
    ),
    "updates": (updates, TRAINED),
    "updates-sockets": (updates_by_sockets, TRAINED),
    "gradients-fsdp": (gradients, ["distributed.engine=fsdp"]),
    "updates-fsdp": (updates, [*TRAINED, "distributed.engine=fsdp"]),
}
"""``little``: next to nothing to predict, so that some ranks have no loss at all."""
