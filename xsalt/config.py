"""The configuration of a run: dataclasses that check, and a hash that names. Imports neither torch nor Hydra.

``xsalt_cli.front`` composes the command line into one plain mapping; ``Composed.of`` turns it into what is below,
with one error line for a key that is unknown, of the wrong type or out of range.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from xsalt.config_distill import DistillConfig, VocabularyConfig
from xsalt.errors import UserError, did_you_mean
from xsalt.fields import Key, check_value, document, key, make, plain
from xsalt.registry import REGISTRIES, Registry
from xsalt.stored import read_yaml, to_yaml

T = TypeVar("T")

__all__ = [
    "BatchConfig",
    "CheckpointConfig",
    "Composed",
    "DataConfig",
    "DistributedConfig",
    "EvalConfig",
    "OptimConfig",
    "TrainConfig",
    "build",
    "cache_dir",
    "changed_keys",
    "component_config",
    "config_hash",
    "default_run",
    "key",
    "read_yaml",
    "to_yaml",
]

LISTED = ("augmenter", "criterion")
"""Kinds of which a run may have several."""


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from (keys ``data.*``)."""

    root: str | None = key(None, "folder of the data; null: the task's embedded data, where it has any", path=True)
    train: list[str] | None = key(None, "files that replace the training set, comma-separated", path=True)
    max_train: int | None = key(None, "training examples at most, of each source language; null: all", at_least=1)
    on_error: str = key(
        "stop", "at a bad row: stop with file:line, or skip, count and report", choices=("stop", "skip")
    )


@dataclass(frozen=True)
class BatchConfig:
    """How many examples an update sees (keys ``batch.*``)."""

    size: int = key(32, "sequences in a batch", at_least=1)
    max_tokens: int | None = key(None, "tokens in a batch at most, in place of batch.size", at_least=1)
    accumulate: int = key(1, "batches summed into one update", at_least=1)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule (keys ``optim.*``)."""

    lr: float | None = key(None, "highest learning rate; null: by the encoder's width", above=0.0)
    weight_decay: float = key(0.01, "decoupled decay an update (times lr); none on biases and LayerNorm", at_least=0.0)
    warmup: float = key(0.06, "share of all updates in which the learning rate rises from 0", at_least=0.0, at_most=1.0)
    schedule: str = key("linear", "learning rate after the warm-up", choices=("linear", "cosine", "constant"))
    beta1: float = key(0.9, "decay of the gradient's running mean", at_least=0.0, below=1.0)
    beta2: float = key(0.999, "decay of the squared gradient's running mean", at_least=0.0, below=1.0)
    eps: float = key(1e-8, "added to the denominator of AdamW", above=0.0)
    clip: float = key(1.0, "largest global norm of the gradient; 0: no clipping", at_least=0.0)
    max_skipped: int = key(
        10,
        "updates that may be skipped because their loss or gradient is not finite; after one more the run stops",
        at_least=0,
        hashed=False,
    )


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation (keys ``eval.*``). Checkpoints are chosen on the source language's dev set, whatever is set here."""

    every: int | None = key(
        None, "updates between evaluations on the source language's dev set; null: every epoch", at_least=1
    )
    split: str = key("dev", "split that is evaluated in every language when training ends")
    chrf: bool = key(
        False,
        "chrF of switched dev sentences in RUN/augmentation.json, if the dev sets are parallel: scores the dev set too",
        hashed=False,
    )
    patience: int | None = key(None, "stop after so many evaluations without a better one; null: never", at_least=1)


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving (keys ``checkpoint.*``)."""

    every: int | None = key(
        None,
        "updates between checkpoints; null: at the end of every epoch, or by minutes alone",
        at_least=1,
        hashed=False,
    )
    minutes: float | None = key(
        None, "minutes between checkpoints, besides those by every; null: never by time", above=0.0, hashed=False
    )
    keep_last: int = key(
        2, "checkpoints to resume from that are kept: last, and those before it as update-N", at_least=1, hashed=False
    )
    background: bool = key(
        True, "write beside training, from a copy of what is trained and of its optimizer's state", hashed=False
    )
    keep: str = key(
        "all",
        "all: last (to resume from) and best; best: the best weights alone; none: these in memory, no file at all",
        choices=("all", "best", "none"),
        hashed=False,
    )


@dataclass(frozen=True)
class DistributedConfig:
    """What the ranks that ``torchrun`` starts tell each other (keys ``distributed.*``); without it they do nothing."""

    engine: str = key(
        "ddp",
        "ddp: every rank holds all weights; fsdp: encoder layers are split over ranks, for encoders that do not fit",
        choices=("ddp", "fsdp"),
        hashed=False,
    )
    compress: str = key(
        "none",
        "send gradients as they are, or rounded to bf16: half the traffic, sums of three digits",
        choices=("none", "bf16"),
    )


@dataclass(frozen=True)
class TrainConfig:
    """Every key of a run that belongs to no component."""

    run: str | None = key(
        None,
        "run folder; null: runs/TASK-AUGMENTERS-sSEED-HASH; with --multirun the parent folder",
        path=True,
        hashed=False,
    )
    seed: int = key(1, "seed of everything random", at_least=0, below=2**63)
    source: list[str] = key(["en"], "source languages, comma-separated codes")
    languages: list[str] | None = key(None, "target languages, comma-separated codes; null: all that the data has")
    pretrained: str | None = key(
        "e5-small", "e5-small, a checkpoint's folder, or null: from scratch by model.*", path=True
    )
    tokenizer: str | None = key(None, "tokenizer's file or folder; null: that of the checkpoint", path=True)
    max_length: int = key(128, "tokens of a sequence at most, special tokens included", at_least=3)
    epochs: int | None = key(
        None, "passes over the training set; null: by max_updates, or 2 if that is null too", at_least=1
    )
    max_updates: int | None = key(None, "updates at most", at_least=1)
    dropout: float = key(
        0.1, "probability of dropout in the encoder and before the classifier", at_least=0.0, below=1.0
    )
    precision: str = key(
        "auto",
        "matrix products in bfloat16 or float32; auto: bf16 where the device multiplies it fast",
        choices=("auto", "bf16", "fp32"),
    )
    device: str = key("auto", "auto: cuda where there is one", choices=("auto", "cpu", "cuda"), hashed=False)
    kernels: str = key(
        "auto",
        "auto: the fused kernels where there are any; reference: plain PyTorch",
        choices=("auto", "reference"),
        hashed=False,
    )
    resume: str = key(
        "auto", "auto: go on from the run's last checkpoint; never; or a checkpoint's folder", path=True, hashed=False
    )
    init_from: str | None = key(None, "run or checkpoint whose weights are taken at the start", path=True)
    init_parts: list[str] = key(["encoder"], "parts taken from init_from: encoder, classifier, mlm_head")
    freeze: list[str] = key([], "parts that are not trained: embeddings, encoder, classifier, mlm_head")
    dry_run: bool = key(False, "check everything, run one update, write nothing", hashed=False)
    profile: bool = key(False, "write a trace of five updates and a table of operators to RUN/profile", hashed=False)
    log_every: int = key(10, "updates between logged lines", at_least=1, hashed=False)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    batch: BatchConfig = dataclasses.field(default_factory=BatchConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    vocabulary: VocabularyConfig = dataclasses.field(default_factory=VocabularyConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        if not self.source:
            raise UserError("source: no source language, write source=en")
        for name, codes in (("source", self.source), ("languages", self.languages or ())):
            twice = next((code for code in codes if codes.count(code) > 1), None)
            if twice is not None:
                raise UserError(f"{name}={','.join(codes)}: {twice} stands twice")
        check_value("init_parts", self.init_parts, ("encoder", "classifier", "mlm_head"))
        check_value("freeze", self.freeze, ("embeddings", "encoder", "classifier", "mlm_head"))

    @property
    def epoch_limit(self) -> int | None:
        """Passes over the training set at most; None if only ``max_updates`` limits the run."""
        return self.epochs if self.epochs is not None or self.max_updates is not None else 2


@dataclass(frozen=True)
class Composed:
    """A checked configuration.

    Attributes:
        train: the keys that belong to no component.
        task, model, augmenters, criterions: names of the components, in the order of the command line.
        resolved: everything as one plain mapping, defaults included: what ``config.yaml`` stores and the hash reads.
        positional: a script's own positional arguments, by their names.
        extra: a script's own keys, an instance of the dataclass that it gave to ``front.launch``.
    """

    train: TrainConfig
    task: str
    model: str
    augmenters: tuple[str, ...]
    criterions: tuple[str, ...]
    resolved: dict[str, Any]
    user_dirs: tuple[Path, ...] = ()
    positional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra: Any = None

    @classmethod
    def of(cls, mapping: Mapping[str, Any], user_dirs: tuple[Path, ...] = ()) -> Composed:
        """Checks a mapping, for instance that of a run's ``config.yaml``. Imports the modules of its components.

        Raises:
            UserError: naming the key that is unknown, missing, of the wrong type or out of range.
        """
        task, model = mapping.get("task") or {}, mapping.get("model") or {}
        if not isinstance(task, Mapping) or len(task) != 1:
            raise UserError(f"a configuration needs one task, not {len(task)}: --task NAME (known: {_known('task')})")
        if not isinstance(model, Mapping) or "name" not in model:
            raise UserError(f"a configuration needs model.name (known: {_known('model')})")
        names = {"task": list(task), "model": [str(model["name"])]}
        resolved: dict[str, Any] = {"task": {}, "model": {}, "augmenter": {}, "criterion": {}}
        for kind in LISTED:
            section = mapping.get(kind) or {}
            if not isinstance(section, Mapping):
                raise UserError(f"{kind}: {section!r} stands where names with their keys are needed")
            names[kind] = list(section)
        for kind, of_kind in names.items():
            for name in of_kind:
                node = model if kind == "model" else mapping[kind][name]
                values = plain(component_config(REGISTRIES[kind], name, node))
                resolved[kind] = {"name": name, **values} if kind == "model" else {**resolved[kind], name: values}
        train = make(TrainConfig, {k: v for k, v in mapping.items() if k not in REGISTRIES}, "")
        return cls(
            train,
            names["task"][0],
            names["model"][0],
            tuple(names["augmenter"]),
            tuple(names["criterion"]),
            {**resolved, **plain(train)},
            user_dirs,
        )

    @property
    def hash(self) -> str:
        return config_hash(self.resolved)

    @property
    def run(self) -> Path:
        """The run folder: the one given, or the one that the configuration names."""
        return Path(self.train.run) if self.train.run else default_run(self)

    def node(self, kind: str, name: str) -> Mapping[str, Any]:
        """The keys of one component, for ``build``."""
        node: Mapping[str, Any] = self.resolved["model"] if kind == "model" else self.resolved[kind][name]
        return node

    def build(self, kind: str, name: str, *args: Any) -> Any:
        """The component of that kind and name, constructed as ``Component(config, *args)``."""
        return build(REGISTRIES[kind], name, self.node(kind, name), *args)

    def with_changes(self, **changes: Any) -> Composed:
        """A copy with other top-level keys, both in ``train`` and in ``resolved``."""
        train = dataclasses.replace(self.train, **changes)
        return dataclasses.replace(self, train=train, resolved={**self.resolved, **plain(train)})


def _known(kind: str) -> str:
    return ", ".join(REGISTRIES[kind].names())


def component_class(registry: Registry, name: str) -> Any:
    """The class of a component. A plug-in that fails to import is the user's to repair, a built-in is not."""
    where = registry.describe().get(name, ("", "xsalt."))[1]
    try:
        cls = registry.get(name)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        if where.startswith("xsalt."):
            raise
        raise UserError(f"{registry.kind} {name!r} ({where}) fails to load: {type(error).__name__}: {error}") from error
    if not dataclasses.is_dataclass(getattr(cls, "Config", None)):
        raise UserError(f"{registry.kind} {name!r} ({where}) has no Config: give the class a dataclass of that name")
    return cls


def component_config(registry: Registry, name: str, node: Mapping[str, Any]) -> Any:
    """The component's ``Config`` from its keys. Raises ``UserError`` naming the key and the component."""
    config = component_class(registry, name).Config
    if registry.kind == "model":
        has_name = "name" in {f.name for f in dataclasses.fields(config)}
        node = {**node, "name": name} if has_name else {k: v for k, v in node.items() if k != "name"}
        return make(config, node, "model")
    return make(config, node, f"{registry.kind}.{name}")


def build(registry: Registry, name: str, node: Mapping[str, Any], *args: Any) -> Any:
    """``Component(config, *args)``, the config made and checked from the component's keys."""
    return component_class(registry, name)(component_config(registry, name, node), *args)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf; an empty mapping is a leaf, so that components without keys still count."""
    for name, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def unhashed_keys() -> frozenset[str]:
    """Keys that change where, on what or how often, but not which experiment: the hash leaves them out."""
    return frozenset(entry.name for entry in document(TrainConfig) if not entry.hashed)


def config_hash(resolved: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of a resolved configuration. The order of components counts, that of keys doesn't."""
    skip = unhashed_keys()
    leaves = sorted((k, v) for k, v in flatten(resolved) if k not in skip)
    order = {kind: list(resolved.get(kind) or {}) for kind in LISTED}
    return hashlib.sha256(json.dumps([leaves, order], sort_keys=True, default=str).encode()).hexdigest()


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys, sorted, in which two resolved configurations are different experiments."""
    missing, skip = object(), unhashed_keys()
    a, b = dict(flatten(old)), dict(flatten(new))
    return sorted(k for k in a.keys() | b.keys() if k not in skip and a.get(k, missing) != b.get(k, missing))


def run_name(config: Composed) -> str:
    augmenters = "+".join(config.augmenters) or "none"
    return f"{config.task}-{augmenters}-s{config.train.seed}-{config.hash[:8]}"


def default_run(config: Composed) -> Path:
    """``runs/{task}-{augmenters}-s{seed}-{first 8 of the hash}``: no time stamp, so that restarts and ranks agree."""
    return Path("runs") / run_name(config)


def cache_dir() -> Path:
    """Folder of everything that can be made again: ``$XSALT_CACHE``, or xsalt's folder in the user's cache folder."""
    if os.environ.get("XSALT_CACHE"):
        return Path(os.environ["XSALT_CACHE"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "xsalt"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "xsalt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xsalt"


def train_keys() -> dict[str, Key]:
    """Dotted name -> description of every key that belongs to no component."""
    return {entry.name: entry for entry in document(TrainConfig)}


def unknown_key(name: str, known: Mapping[str, Any]) -> UserError:
    return UserError(f"unknown key {name!r}: {did_you_mean(name, known)}(--help lists the keys)")
