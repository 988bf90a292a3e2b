"""The training loop, one function read top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from xsalt.training.health import backward, named, offenders, watch_learning
from xsalt.training.prefetch import prefetched
from xsalt.training.profiling import profiling
from xsalt.training.signals import STOPPING, Interrupted, StopSignals
from xsalt.training.state import STEADY_AFTER, State
from xsalt.training.step import Figures, TrainStep
from xsalt.training.throughput import Window

GIVE_BACK_EVERY = 50
"""Updates after which free memory is returned to the system: its pages cost a moment when they are needed again."""


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
    save: Callable[[Sequence[str], State], None]
    """Writes the checkpoints of these names: ``last``, ``best``."""
    check: Callable[[], None]
    """Raises the error of a checkpoint that could not be written meanwhile."""
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

    def _draw_all(self, todo: tuple[int, Sequence[np.ndarray]], epoch: int, updates: int) -> list[Batch | None]:
        number, micro_batches = todo
        own = split_update(micro_batches, self.train.lengths, distributed.world_size())[distributed.rank()]
        return [self.draw(indices, epoch, epoch + number / updates) if len(indices) else None for indices in own]

    def fit(self, state: State) -> State:
        """Trains from ``state`` to the end of the run, or until early stopping.

        Raises:
            Interrupted: after a signal; the state is saved.
            UserError: if more updates are not finite than may be skipped (the state is saved), or writing fails.
        """
        total = self.total_updates()
        shown = Progress(total, "training", start=state.update)
        tracing = profiling(self.folder / "profile", total - state.update, STEADY_AFTER)
        with (
            closing(RunLog(self.folder, state.update)) as log,
            closing(shown) as progress,
            tracing if self.config.profile and distributed.is_first() else nullcontext(lambda: None) as traced,
        ):
            self._loop(state, log, progress, traced)
        self.parallel.close()
        return state

    def _loop(self, state: State, log: RunLog, progress: Progress, traced: Callable[[], None]) -> None:
        config, optim, model = self.config, self.config.optim, self.step.model
        total = progress.total
        keep_freed_memory()
        give_back_freed_memory()
        window = Window(self.step.flops, self.device, self.step.precision)
        window.restore(state.window)
        model.train()
        saved_at = time.monotonic()
        with StopSignals() as stop, closing(self.updates(state, total)) as updates:
            for drawn in updates:
                counted = [self.step.count(batch) for batch in drawn.batches]
                own_batches = [batch for batch in drawn.batches if batch is not None]
                own_tokens = sum(batch.layout.tokens for batch in own_batches)
                agreed = Agreed.by_all(counted, own_tokens, stop.caught)
                figures: list[Figures] = []
                for number, (batch, own) in enumerate(zip(drawn.batches, counted, strict=True), start=1):
                    placed = batch and batch.to(self.device)
                    if placed is not None:
                        set_dropout_key(model, config.seed, state.update, placed)
                    with self.parallel.accumulating() if number < len(counted) else nullcontext():
                        loss, logged = self.parallel(placed, agreed.counts, own)
                        backward(loss)
                    if batch is not None:
                        figures.append(logged | batch.log)
                self.parallel.finish()
                norm = gradient_norm(self.step.parameters())  # here an update waits for the device, and only here
                lr = float(optim.lr or 0.0) * rate(optim.schedule, state.update, total, optim.warmup)
                if finite := math.isfinite(norm):
                    self._apply(lr, clipping(norm, optim.clip), state)
                    for logged in figures:
                        window.add_figures(logged)
                self.optimizer.zero_grad(set_to_none=True)
                if not finite:
                    self._skip(own_batches, agreed.counts, state)

                state.count(drawn.examples, time.monotonic() - drawn.began, drawn.of_epoch)
                window.add_update(own_batches, drawn.examples, drawn.waited, agreed.tokens)
                if state.update == 1 and own_batches:
                    log.text("augment/examples", self.show(own_batches[0]), 1)
                last = state.update == total
                if state.update % config.log_every == 0 or last:
                    values = {"lr": lr, "skipped_updates": float(state.skipped_updates)} | window.values()
                    values |= {"grad_norm": norm} if finite else {}
                    watch_learning(state, window.figures, self.accuracy_name(), config.log_every, self.train.label)
                    log.update(state.update, state.epoch + state.in_epoch / drawn.of_epoch, values)
                    progress.step(0, " ".join(f"{k}={values[k]:.3f}" for k in ("loss", "accuracy") if k in values))
                    window.restart()
                if state.update % GIVE_BACK_EVERY == 0:
                    give_back_freed_memory()
                progress.step()
                traced()

                end_of_epoch = state.in_epoch == 0
                paused, names_due = time.monotonic(), list[str]()
                if due(state.update, config.eval.every, end_of_epoch) or last:
                    self.parallel.settle()
                    if self.judge(state, log):
                        names_due.append("best")
                signal_number = agreed.stop if distributed.world_size() > 1 else stop.caught
                broken = state.skipped_updates > optim.max_skipped and not finite
                if last or state.stopped_early or signal_number or broken or self._due(state, end_of_epoch, saved_at):
                    names_due.append("last")
                    saved_at = time.monotonic()
                self.check()
                if names_due:
                    log.flush()
                    state.window = window.as_dict()
                    self.parallel.settle()
                    self.save(names_due, state)
                window.paused += time.monotonic() - paused
                if broken:
                    self._give_up(state)
                if signal_number:
                    raise Interrupted(signal_number, self._saved(state))
                if last or state.stopped_early:
                    break

    def _apply(self, lr: float, scale: float, state: State) -> None:
        """The optimizer's step, with the gradients times ``scale``."""
        word = self.step.model.embeddings.word
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step(scale=scale)
        if word.weight.requires_grad:
            word.decay_untouched(1.0 - lr * self.config.optim.weight_decay)
            state.word_decay *= 1.0 - lr * self.config.optim.weight_decay

    def _skip(self, batches: Sequence[Batch], counts: Mapping[str, float], state: State) -> None:
        """Counts an update whose gradient is not finite, and says which examples made it so."""
        state.skipped_updates += 1
        uids = offenders(self.step, batches, counts, self.config.seed, state.update, self.train.uids)
        say(
            f"warning: update {state.update + 1} is skipped: its loss or gradient is not finite; examples "
            f"{named(uids)} ({state.skipped_updates} skipped, optim.max_skipped={self.config.optim.max_skipped})"
        )

    def _give_up(self, state: State) -> None:
        raise UserError(
            f"{self.folder}: {state.skipped_updates} updates had a loss or gradient that is not finite, more than "
            f"optim.max_skipped={self.config.optim.max_skipped}, the last one update {state.update}: "
            f"lower optim.lr (now {self.config.optim.lr:g}); {self._saved(state)}"
        )

    def _saved(self, state: State) -> str:
        keep = self.config.checkpoint.keep
        if keep == "all":
            return f"saved update {state.update} in {self.folder}"
        return f"stopped at update {state.update}; with checkpoint.keep={keep} nothing was saved to resume from"

    def _due(self, state: State, end_of_epoch: bool, saved_at: float) -> bool:
        """Whether ``checkpoint.every`` or ``checkpoint.minutes`` asks for a checkpoint; rank 0's clock counts."""
        every, minutes = self.config.checkpoint.every, self.config.checkpoint.minutes
        if minutes is not None and distributed.from_first(time.monotonic() - saved_at >= 60 * minutes):
            return True
        return due(state.update, every, end_of_epoch) if every is not None or minutes is None else False

    def accuracy_name(self) -> str | None:
        """Name of the figure that is the accuracy on labels, if a criterion needs labels."""
        criterions = self.step.criterions
        name = next((name for name, each in criterions.items() if getattr(each, "needs_labels", False)), None)
        return None if name is None else "accuracy" if len(criterions) == 1 else f"{name}_accuracy"

    def judge(self, state: State, log: RunLog) -> bool:
        """Evaluates on the source language's dev set: whether it is the best so far. Stops early when patience ends."""
        if self.evaluate is None:
            return False
        score = distributed.from_first(self.evaluate())  # the same bits, and so the same decisions, on all ranks
        log.scalar("dev/source", score, state.update)
        say(f"update {state.update}: {'+'.join(self.config.source)} dev accuracy {100 * score:.2f} %")
        if score > state.best:
            state.best, state.best_update, state.bad_evaluations = score, state.update, 0
            return True
        state.bad_evaluations += 1
        patience = self.config.eval.patience
        state.stopped_early = patience is not None and state.bad_evaluations >= patience
        return False


def due(update: int, every: int | None, end_of_epoch: bool) -> bool:
    """Whether something that happens every N updates (None: at the end of each epoch) is due."""
    return end_of_epoch if every is None else update % every == 0
