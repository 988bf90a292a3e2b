"""The checkpoints of a run folder: when it is finished, what it continues from, what it saves."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from xsalt import distributed, parallel
from xsalt.checkpoint import (
    MODEL,
    OPTIMIZER,
    STATE,
    Parts,
    atomic_folder,
    load_checkpoint,
    read_json,
    read_state,
    recover,
    remove_folder,
    verify,
)
from xsalt.config import Composed, changed_keys, read_yaml, to_yaml
from xsalt.errors import UserError
from xsalt.evaluation.evaluate import write_text
from xsalt.logging import say
from xsalt.models.auto import save_model
from xsalt.optim.adamw import load_state_tensors, state_tensors
from xsalt.training.saving import Writer, is_gone
from xsalt.training.state import State

if TYPE_CHECKING:
    from xsalt.training.trainer import Trainer

Value = TypeVar("Value")

WRITTEN: tuple[str, ...] = ("results", "checkpoints", "predictions", "tensorboard", "profile")
WRITTEN += ("metrics.jsonl", "results.json", "augmentation.json", "config.yaml")
"""What a run writes into its folder, and all that ``resume=never`` removes from it, in an order that a kill may cut:
what says that the run is finished goes first, what says of which configuration the rest is goes last."""


def trained(run: Path) -> bool:
    """Whether some results of a run are from the end of its training, not of ``xsalt-eval`` before it."""
    found = [read_json(path).get("train") or {} for path in sorted((run / "results").glob("*.json"))]
    return any(row.get("finished", True) for row in found)


class Checkpoints:
    """Checkpoints ``last`` (everything), those before it as ``update-N``, and ``best`` (weights only) of a run folder.

    Args:
        run: the run folder.
        config: the configuration asked for; it must be the one that the folder was made with.
    """

    def __init__(self, run: Path, config: Composed) -> None:
        self.run, self.config = run, config
        self.folder = run / "checkpoints"
        self.tokenizer: Any = None
        self.labels: tuple[str, ...] = ()
        self._best: tuple[dict[str, Tensor], float] | None = None
        self._writer = Writer(config.train.checkpoint.background)

    def finished(self) -> bool:
        """Whether the folder holds the results of this very configuration.

        Raises:
            UserError: if the folder belongs to another configuration; the message names the keys.
        """
        if self.run.exists() and not self.run.is_dir():
            raise UserError(f"run={self.run}: is a file, a run needs a folder: choose another name")
        stored = self.run / "config.yaml"
        if self.config.train.resume == "never" or not stored.exists():
            return False
        changed = changed_keys(read_yaml(stored), self.config.resolved)
        if changed:
            raise UserError(
                f"{self.run}: made with another configuration, changed: {', '.join(changed)}: "
                "choose another run=DIR, or resume=never to start it over"
            )
        return trained(self.run) and (self.run / "results" / f"{self.config.train.eval.split}.json").exists()

    def claim(self) -> None:
        """Makes the run folder and stores the configuration in it."""
        try:
            if self.config.train.resume == "never":
                self._clear()
            recover(self.folder / "last")
            for left in (path for kind in ("new", "gone") for path in self.folder.glob(f".*.{kind}")):
                shutil.rmtree(left)  # what a kill left of a save
            write_text(self.run / "config.yaml", to_yaml(self.config.resolved))
        except OSError as error:
            raise UserError(f"run={self.run}: cannot be written: {error.strerror}: choose another folder") from error

    def _clear(self) -> None:
        for name in WRITTEN:
            path = self.run / name
            remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises the error of a checkpoint that could not be written meanwhile."""
        self._writer.check()

    def finish(self) -> None:
        """Returns when everything is written."""
        self._writer.wait()

    def _earlier(self) -> list[Path]:
        """The checkpoints before ``last`` that are kept, the newest first."""
        found = (self.folder).glob("update-*")
        return sorted((p for p in found if p.name[7:].isdecimal()), key=lambda p: int(p.name[7:]), reverse=True)

    def _source(self) -> tuple[Path, dict[str, str]] | None:
        """The checkpoint to go on from and what ``verify`` gave for it; None: from the beginning."""
        resume, last = self.config.train.resume, self.folder / "last"
        if resume == "never":
            return None
        recover(last)
        own = [path for path in (last, *self._earlier()) if path.exists()]
        if own or resume == "auto":
            return self._newest_good(own) if own else None
        given = Path(resume)
        folder = given / "checkpoints" / "last" if (given / "checkpoints").is_dir() else given
        if not (folder / STATE).exists():
            raise UserError(f"resume={resume}: {folder} has no {STATE}: name a run or its checkpoints/last")
        return folder, verify(folder)

    def _newest_good(self, paths: Sequence[Path]) -> tuple[Path, dict[str, str]]:
        """Damaged ones before it are moved out of the way, so that nothing is taken for good that isn't."""
        damaged: dict[Path, str] = {}
        for path in paths:
            try:
                names = verify(path)
            except UserError as error:
                damaged[path] = str(error).removesuffix(": use another checkpoint")
                continue
            for bad, reason in damaged.items():
                aside = bad.with_name(f"damaged-{bad.name}")
                remove_folder(aside)
                os.replace(bad, aside)
                say(f"warning: {reason}: kept as {aside.name}, falling back to {path}")
            return path, names
        reason = next(iter(damaged.values()))
        raise UserError(f"{reason}, and no other checkpoint is whole: resume=never starts the run over")

    def resume(self, trainer: Trainer) -> State:
        """Loads the newest good checkpoint into the trainer, if there is one, and says from where it goes on.

        Raises:
            UserError: if there are checkpoints and none of them is whole, naming a file; or if they don't fit the run.
        """
        chosen = _decided(self._source)
        if chosen is None:
            return State()
        source, names = chosen
        tensors, stored = load_checkpoint(source, names)
        if stored is None or OPTIMIZER not in tensors:
            raise UserError(f"{source}: holds weights only: to start from them write pretrained={source}")
        model = trainer.step.model
        word = model.embeddings.word
        state = _state(stored, source / STATE)
        if stored.get("active_rows") != len(word.active_ids):
            raise UserError(f"{source}: its active word rows are not those of this run's data: choose another run=DIR")
        # rows never touched stay those of the pretrained table under one product of decays, as without an interruption
        model.load_whole_state(tensors[MODEL], active_rows_only=True)
        word.decay = state.word_decay
        parameters = dict(model.named_parameters())
        try:
            load_state_tensors(trainer.optimizer, tensors[OPTIMIZER], parameters)
        except ValueError as error:
            raise UserError(f"{source / OPTIMIZER}: {error}: choose another run=DIR") from error
        if source.parent != self.folder and not _decided(partial(self._adopt, source.parent / "best")):
            state.best, state.best_update, state.bad_evaluations = State.best, State.best_update, 0
        state.resumed_from.append(state.update)
        say(f"resuming {self.run} at update {state.update}")
        return state

    def _adopt(self, best: Path) -> bool:
        """Copies the best weights of another run that this one goes on from. False if it has none."""
        if not best.exists() or self.config.train.checkpoint.keep == "none":
            return False
        verify(best)
        with atomic_folder(self.folder / "best") as new:
            shutil.copytree(best, new, dirs_exist_ok=True)
        return True

    def save(self, names: Sequence[str], model: Any, optimizer: torch.optim.AdamW, state: State) -> None:
        """Writes ``best`` (weights only) and ``last`` (with optimizer and state), as ``checkpoint.keep`` wants it.

        What they hold is copied now and written in the background, ``best`` first, as the state in ``last`` names it.
        """
        options = self.config.train.checkpoint
        if "best" in names and options.keep == "none":
            weights = {key: value.detach().clone() for key, value in model.named_parameters()}
            self._best = weights, model.embeddings.word.decay
        names = [name for name in names if options.keep == "all" or (options.keep, name) == ("best", "best")]
        split = any(parallel.is_sharded(parameter) for parameter in model.parameters())
        if not names or not (split or distributed.is_first()):  # weights split over ranks are put together by all
            return
        self._writer.wait()  # before the copy: there is one at a time
        stored = state.as_dict() | {
            "active_rows": len(model.embeddings.word.active_ids),
            "config_hash": self.config.hash,
        }
        parameters = {id(parameter): key for key, parameter in model.named_parameters()}
        moments = state_tensors(optimizer, parameters) if "last" in names else {}
        weights = model.snapshot()
        if distributed.is_first():
            self._writer.submit(partial(self._write, names, model, weights, moments, stored))

    def _write(
        self,
        names: Sequence[str],
        model: Any,
        weights: Mapping[str, Tensor | Parts],
        moments: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> None:
        if is_gone(self.run):  # it would be made again, without its beginning
            raise FileNotFoundError(self.run)
        texts = {"run.yaml": to_yaml(self.config.resolved)}
        for name in names:
            last = name == "last"
            save_model(
                self.folder / name,
                model,
                self.tokenizer,
                self.labels,
                optimizer=moments if last else None,
                state=state if last else None,
                extra=texts,
                weights=weights,
                former=self._former() if last else None,
            )
        for path in self._earlier()[self.config.train.checkpoint.keep_last - 1 :]:
            remove_folder(path)

    def _former(self) -> Path | None:
        """Where ``last`` goes when the next one comes: under its update's number, if earlier ones are kept."""
        last = self.folder / "last"
        if self.config.train.checkpoint.keep_last == 1 or not last.exists():
            return None
        return self.folder / f"update-{int(read_json(last / STATE)['update'])}"

    def load_best(self, model: Any, state: State) -> str:
        """Puts the best weights into the model (the last ones if none were chosen); returns the checkpoint's name."""
        if self._best is not None:
            weights, model.embeddings.word.decay = self._best
            with torch.no_grad():
                for key, value in model.named_parameters():
                    value.copy_(weights[key])
            return "best"
        folder = self.folder / "best"
        if distributed.is_first():
            recover(folder)
        distributed.wait_for_all()
        if state.best_update < 0:
            return "last"
        if not folder.exists():
            raise UserError(
                f"{folder}: is gone, though update {state.best_update} was the best: resume=never starts over"
            )
        tensors, _ = load_checkpoint(folder)
        model.load_whole_state(tensors[MODEL])
        return "best"

    def state(self) -> State | None:
        """How far the run came, if it has a checkpoint."""
        path = self.folder / "last" / STATE
        if not path.exists():
            return None
        return _state(read_state(path.parent), path)


def _state(stored: Mapping[str, Any], where: Path) -> State:
    """Raises ``UserError`` for a value of another type than that of the field."""
    blank = dataclasses.asdict(State())
    values = {name: value for name, value in stored.items() if name in blank and value is not None}
    for name, value in values.items():
        kind = type(blank[name])
        if not (type(value) is kind or (kind is float and type(value) is int)):
            raise UserError(f"{where}: {name} is {str(value)[:40]}, expected {kind.__name__}: use another checkpoint")
    return State(**values)


def _decided(choose: Callable[[], Value]) -> Value:
    """What rank 0 finds, on all ranks; its ``UserError`` too, so that none waits for one that gave up."""
    found: tuple[Value | None, str | None] = None, None
    if distributed.is_first():
        try:
            found = choose(), None
        except UserError as error:
            found = None, str(error)
    value, reason = distributed.from_first(found)
    if reason is not None:
        raise UserError(reason)
    return cast(Value, value)
