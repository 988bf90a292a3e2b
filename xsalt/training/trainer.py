"""The training loop, one function read top to bottom."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from xsalt import distributed
from xsalt.batch import Batch
from xsalt.config import TrainConfig
from xsalt.data.batching import plan_batches, split_update
from xsalt.data.dataset import Dataset
from xsalt.errors import UserError
from xsalt.logging import Progress, RunLog, say
from xsalt.memory import give_back_freed_memory, keep_freed_memory
from xsalt.nn.dropout import set_dropout_key
from xsalt.optim.adamw import AdamW, clipping, gradient_norm
from xsalt.optim.schedules import rate
from xsalt.parallel import Alone
from xsalt.protocols import Augmenter
from xsalt.training.prefetch import prefetched
from xsalt.training.profiling import profiling
from xsalt.training.step import TrainStep
from xsalt.training.throughput import Window

GIVE_BACK_EVERY = 50
"""Updates after which free memory is returned to the system: its pages cost a moment when they are needed again."""

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that stop a run after the update that is being done."""

STEADY_AFTER = 10
"""Updates left out of the steady-state speed: caches and allocators warm up."""


@dataclass
class State:
    """How far a run is. With the weights and the optimizer's state it is all that a resumed run needs."""

    update: int = 0
    epoch: int = 0
    in_epoch: int = 0
    """Updates of the current epoch done."""
    examples: int = 0
    wall_s: float = 0.0
    steady_s: float = 0.0
    steady_examples: int = 0
    best: float = -math.inf
    best_update: int = -1
    bad_evaluations: int = 0
    """Evaluations since the best one."""
    word_decay: float = 1.0
    """Product of 1 - lr * weight decay over all updates: what the word rows never touched have decayed by."""
    stopped_early: bool = False
    resumed_from: list[int] = field(default_factory=list)
    """Updates at which the run was resumed."""

    def count(self, examples: int, seconds: float) -> None:
        """Counts an update that is done."""
        self.update, self.in_epoch = self.update + 1, self.in_epoch + 1
        self.examples, self.wall_s = self.examples + examples, self.wall_s + seconds
        if self.update > STEADY_AFTER:
            self.steady_s, self.steady_examples = self.steady_s + seconds, self.steady_examples + examples

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"best": self.best if math.isfinite(self.best) else None}


@dataclass(frozen=True)
class Drawn:
    """What an update computes with: this rank's part of its micro-batches, and how long they took to come."""

    batches: list[Batch | None]
    """None where this rank has no example of a micro-batch, as there are more ranks than examples."""
    examples: int
    """Of all ranks."""
    of_epoch: int
    """Updates of the epoch."""
    began: float
    waited: float


@dataclass(frozen=True)
class Agreed:
    """What ranks tell each other in an update, by one all-reduce.

    Attributes:
        counts: what each criterion counts, of all micro-batches and ranks.
        tokens: of each rank.
        stop: the signal that asked a rank to stop; then all do after this update.
    """

    counts: dict[str, float]
    tokens: list[float]
    stop: int | None

    @classmethod
    def by_all(cls, counted: Sequence[dict[str, float]], tokens: int, caught: int | None) -> Agreed:
        """From each rank's own counts (of its micro-batches), tokens and signal."""
        names, rank, ranks = list(counted[0]), distributed.rank(), distributed.world_size()
        values = [sum(own[name] for own in counted) for name in names]
        values += [float(tokens) if number == rank else 0.0 for number in range(ranks)]
        values += [float(caught == number) for number in STOPPING]
        values = distributed.sum_over_ranks(values)
        stops = [number for number, ranks_ in zip(STOPPING, values[-len(STOPPING) :], strict=True) if ranks_]
        return cls(
            dict(zip(names, values, strict=False)), values[len(names) : len(names) + ranks], max(stops, default=None)
        )


class Interrupted(Exception):
    """A signal asked the run to stop; it has saved. ``exit_code`` is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopSignals:
    """While active, SIGINT and SIGTERM only take a note; a second one ends the process at once."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in STOPPING:
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread (a notebook's worker): leave signals alone
                break
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@dataclass
class Trainer:
    """What the loop works with. ``evaluate`` gives the score on the source language's dev set (None: there is none)."""

    config: TrainConfig
    step: TrainStep
    optimizer: AdamW
    train: Dataset
    augmenters: Sequence[Augmenter]
    folder: Path
    device: torch.device
    evaluate: Callable[[], float] | None
    save: Callable[[str, State], None]
    """Writes checkpoint ``last`` or ``best``."""
    show: Callable[[Batch], str]
    """An augmented batch as Markdown, for TensorBoard."""
    parallel: Alone
    """``step`` as this rank calls it: where there are several, their gradients are added up."""

    def plan(self, epoch: int) -> list[list[np.ndarray]]:
        """The epoch's updates: for each the example numbers of its micro-batches. A function of (seed, epoch) alone."""
        batch = self.config.batch
        batches = plan_batches(
            self.train.lengths,
            size=None if batch.max_tokens else batch.size,
            max_tokens=batch.max_tokens,
            seed=self.config.seed,
            epoch=epoch,
            shuffle=True,
        )
        return [batches[i : i + batch.accumulate] for i in range(0, len(batches), batch.accumulate)]

    def total_updates(self) -> int:
        """Updates of the whole run: ``max_updates``, or as many as ``epochs`` have, whichever is less."""
        config = self.config
        if config.epochs is None:
            return int(config.max_updates or 0)
        # with a token budget the epochs differ by a batch or so: the first stands for all in the schedule
        whole = math.ceil(config.epochs * len(self.plan(0)))
        return min(whole, config.max_updates) if config.max_updates else whole

    def draw(self, indices: np.ndarray, epoch: int, progress: float) -> Batch:
        """A micro-batch, augmented, with what the criterions predict. ``progress``: epochs done before it."""
        batch = self.train.batch(indices, seed=self.config.seed, epoch=epoch).with_(progress=progress)
        for augmenter in self.augmenters:
            batch = augmenter.augment(batch)
        for criterion in self.step.criterions.values():
            batch = criterion.prepare(batch)
        return batch

    def updates(self, state: State, total: int) -> Generator[Drawn, None, None]:
        """What is left of the run, update by update: batches are drawn by a thread of their own, a little ahead."""
        while state.update < total and not state.stopped_early:
            epoch = self.plan(state.epoch)
            todo = list(enumerate(epoch))[state.in_epoch :]
            draw_all = partial(self._draw_all, epoch=state.epoch, updates=len(epoch))
            with closing(prefetched(draw_all, todo)) as drawn:
                began = time.monotonic()
                for (_, micro_batches), batches in zip(todo, drawn, strict=False):
                    examples = sum(len(indices) for indices in micro_batches)
                    yield Drawn(batches, examples, len(epoch), began, time.monotonic() - began)
                    began = time.monotonic()
            advance(state, state.in_epoch == len(epoch))

    def _draw_all(self, todo: tuple[int, Sequence[np.ndarray]], epoch: int, updates: int) -> list[Batch | None]:
        number, micro_batches = todo
        own = split_update(micro_batches, self.train.lengths, distributed.world_size())[distributed.rank()]
        return [self.draw(indices, epoch, epoch + number / updates) if len(indices) else None for indices in own]

    def fit(self, state: State) -> State:
        """Trains from ``state`` to the end of the run, or until early stopping. Raises ``Interrupted`` after saving."""
        total = self.total_updates()
        shown = Progress(total, "training", start=state.update)
        tracing = profiling(self.folder / "profile", total - state.update, STEADY_AFTER)
        with (
            closing(RunLog(self.folder, state.update)) as log,
            closing(shown) as progress,
            tracing if self.config.profile and distributed.is_first() else nullcontext(lambda: None) as traced,
        ):
            self._loop(state, log, progress, traced)
        return state

    def _loop(self, state: State, log: RunLog, progress: Progress, traced: Callable[[], None]) -> None:
        config, optim, model = self.config, self.config.optim, self.step.model
        total = progress.total
        keep_freed_memory()
        give_back_freed_memory()
        window = Window(self.step.flops, self.device, self.step.precision)
        model.train()
        with StopSignals() as stop, closing(self.updates(state, total)) as updates:
            for drawn in updates:
                counted = [self.step.count(batch) for batch in drawn.batches]
                own_batches = [batch for batch in drawn.batches if batch is not None]
                own_tokens = sum(batch.layout.tokens for batch in own_batches)
                agreed = Agreed.by_all(counted, own_tokens, stop.caught)
                losses = []
                for number, (batch, own) in enumerate(zip(drawn.batches, counted, strict=True), start=1):
                    placed = batch and batch.to(self.device)
                    if placed is not None:
                        set_dropout_key(model, config.seed, state.update, placed)
                    with self.parallel.accumulating() if number < len(counted) else nullcontext():
                        loss, logged = self.parallel(placed, agreed.counts, own)
                        if loss.requires_grad:  # nothing to predict in this batch, with a frozen encoder
                            loss.backward()
                    if batch is not None:
                        losses.append(loss.detach())
                        window.add_figures(logged | batch.log)
                self.parallel.finish()
                norm = gradient_norm(self.step.parameters())  # here an update waits for the device, and only here
                self._check(losses, own_batches, state)
                lr = float(optim.lr or 0.0) * rate(optim.schedule, state.update, total, optim.warmup)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                self.optimizer.step(scale=clipping(norm, optim.clip))
                self.optimizer.zero_grad(set_to_none=True)
                if model.embeddings.word.weight.requires_grad:
                    model.embeddings.word.decay_untouched(1.0 - lr * optim.weight_decay)
                    state.word_decay *= 1.0 - lr * optim.weight_decay

                state.count(drawn.examples, time.monotonic() - drawn.began)
                window.add_update(own_batches, drawn.examples, drawn.waited, agreed.tokens)
                if state.update == 1 and own_batches:
                    log.text("augment/examples", self.show(own_batches[0]), 1)
                if state.update % config.log_every == 0 or state.update == total:
                    values = {"lr": lr, "grad_norm": norm} | window.values()
                    log.update(state.update, state.epoch + state.in_epoch / drawn.of_epoch, values)
                    progress.step(0, " ".join(f"{k}={values[k]:.3f}" for k in ("loss", "accuracy") if k in values))
                    window.restart()
                if state.update % GIVE_BACK_EVERY == 0:
                    give_back_freed_memory()
                progress.step()
                traced()

                end_of_epoch = state.in_epoch == drawn.of_epoch
                last = state.update == total
                paused = time.monotonic()
                if due(state.update, config.eval.every, end_of_epoch) or last:
                    self.judge(state, log)
                if due(state.update, config.checkpoint.every, end_of_epoch) or last or state.stopped_early:
                    self.save("last", advance(state, end_of_epoch))
                window.paused += time.monotonic() - paused
                caught = agreed.stop if distributed.world_size() > 1 else stop.caught
                if caught is not None:
                    self.save("last", advance(state, state.in_epoch == drawn.of_epoch))  # it may have advanced already
                    done = f"saved update {state.update} in {self.folder}"
                    if config.checkpoint.keep != "all":
                        done = f"stopped at update {state.update}; with checkpoint.keep={config.checkpoint.keep} "
                        done += "nothing was saved to resume from"
                    say(f"{signal.Signals(caught).name}: {done}")
                    distributed.wait_for_all()  # the end of one process ends the others, which may be saving
                    raise Interrupted(caught)
                if last or state.stopped_early:
                    break

    def _check(self, losses: Sequence[torch.Tensor], batches: Sequence[Batch], state: State) -> None:
        """Raises ``UserError`` if a micro-batch has a loss that is no number."""
        for loss, batch in zip(losses, batches, strict=True):
            if not math.isfinite(float(loss)):
                rows = ", ".join(self.train.uids[int(uid)] for uid in batch.uid_B[:8])
                raise UserError(
                    f"the loss is {float(loss):g} at update {state.update + 1} (examples {rows} ...): "
                    f"lower optim.lr (now {self.config.optim.lr:g}); the last checkpoint is kept"
                )

    def judge(self, state: State, log: RunLog) -> None:
        """Evaluates on the source language's dev set, keeps the best weights, and stops early when patience ends."""
        if self.evaluate is None:
            return
        score = distributed.from_first(self.evaluate())  # the same bits, and so the same decisions, on all ranks
        log.scalar("dev/source", score, state.update)
        say(f"update {state.update}: {'+'.join(self.config.source)} dev accuracy {100 * score:.2f} %")
        if score > state.best:
            state.best, state.best_update, state.bad_evaluations = score, state.update, 0
            self.save("best", state)
        else:
            state.bad_evaluations += 1
            patience = self.config.eval.patience
            state.stopped_early = patience is not None and state.bad_evaluations >= patience


def due(update: int, every: int | None, end_of_epoch: bool) -> bool:
    """Whether something that happens every N updates (None: at the end of each epoch) is due."""
    return end_of_epoch if every is None else update % every == 0


def advance(state: State, end_of_epoch: bool) -> State:
    """Moves the state to the next epoch's start if the epoch is over."""
    if end_of_epoch:
        state.epoch, state.in_epoch = state.epoch + 1, 0
    return state
