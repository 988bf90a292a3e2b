"""The checkpoints of a run folder: when it is finished, what it continues from, what it saves."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xsalt.checkpoint import MODEL, OPTIMIZER, STATE, load_checkpoint, read_state
from xsalt.config import Composed, changed_keys, read_yaml, to_yaml
from xsalt.errors import UserError
from xsalt.evaluation.evaluate import write_text
from xsalt.logging import say
from xsalt.models.auto import save_model
from xsalt.optim.adamw import load_state_tensors, state_tensors
from xsalt.training.trainer import State

if TYPE_CHECKING:
    from xsalt.training.trainer import Trainer

WRITTEN = ("checkpoints", "results", "predictions", "tensorboard", "metrics.jsonl", "results.json", "config.yaml")
"""What a run writes into its folder, and all that ``resume=never`` removes from it."""


class Checkpoints:
    """Checkpoints ``last`` (everything) and ``best`` (weights only) of one run folder.

    Args:
        run: the run folder.
        config: the configuration asked for; it must be the one that the folder was made with.
    """

    def __init__(self, run: Path, config: Composed) -> None:
        self.run, self.config = run, config
        self.tokenizer: Any = None
        self.labels: tuple[str, ...] = ()
        self._best: tuple[dict[str, Tensor], float] | None = None

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
        return (self.run / "results" / f"{self.config.train.eval.split}.json").exists()

    def claim(self) -> None:
        """Makes the run folder and stores the configuration in it."""
        try:
            if self.config.train.resume == "never":
                self._clear()
            write_text(self.run / "config.yaml", to_yaml(self.config.resolved))
        except OSError as error:
            raise UserError(f"run={self.run}: cannot be written: {error.strerror}: choose another folder") from error

    def _clear(self) -> None:
        for name in WRITTEN:
            path = self.run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _source(self) -> Path | None:
        resume = self.config.train.resume
        last = self.run / "checkpoints" / "last"
        if resume == "never":
            return None
        if resume == "auto" or last.exists():
            return last if last.exists() else None
        given = Path(resume)
        folder = given / "checkpoints" / "last" if (given / "checkpoints").is_dir() else given
        if not (folder / "state.json").exists():
            raise UserError(f"resume={resume}: {folder} has no state.json: name a run or its checkpoints/last")
        return folder

    def resume(self, trainer: Trainer) -> State:
        """Loads the last checkpoint into the trainer, if there is one, and says from where it goes on."""
        source = self._source()
        if source is None:
            return State()
        tensors, stored = load_checkpoint(source)
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
        state.resumed_from.append(state.update)
        say(f"resuming {self.run} at update {state.update}")
        return state

    def save(self, name: str, model: Any, optimizer: torch.optim.AdamW, state: State) -> None:
        """Writes ``last`` (with optimizer and state) or ``best`` (weights only), as ``checkpoint.keep`` wants it."""
        keep = self.config.train.checkpoint.keep
        if name == "last" and keep != "all":
            return
        if keep == "none":
            weights = {key: value.detach().clone() for key, value in model.named_parameters()}
            self._best = weights, model.embeddings.word.decay
            return
        state_, tensors = None, None
        if name == "last":
            names = {id(parameter): key for key, parameter in model.named_parameters()}
            tensors = state_tensors(optimizer, names)
            state_ = state.as_dict() | {
                "active_rows": len(model.embeddings.word.active_ids),
                "config_hash": self.config.hash,
            }
        folder = self.run / "checkpoints" / name
        try:
            save_model(
                folder, model, self.tokenizer, self.labels, tensors, state_, {"run.yaml": to_yaml(self.config.resolved)}
            )
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written: {error.strerror}: the checkpoint before it is kept"
            ) from error

    def load_best(self, model: Any) -> str:
        """Puts the best weights into the model (the last ones if none were chosen); returns the checkpoint's name."""
        if self._best is not None:
            weights, model.embeddings.word.decay = self._best
            with torch.no_grad():
                for key, value in model.named_parameters():
                    value.copy_(weights[key])
            return "best"
        folder = self.run / "checkpoints" / "best"
        if not folder.exists():
            return "last"
        tensors, _ = load_checkpoint(folder)
        model.load_whole_state(tensors[MODEL])
        return "best"

    def state(self) -> State | None:
        """How far the run came, if it has a checkpoint."""
        path = self.run / "checkpoints" / "last" / "state.json"
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
