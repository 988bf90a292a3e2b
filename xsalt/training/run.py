"""From a configuration to objects, and from objects to a run folder: what ``xsalt-train`` does, in order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xsalt import distributed, kernels, parallel
from xsalt.config import Composed, EvalConfig, cache_dir, component_class, component_config, read_yaml
from xsalt.data.dataset import Dataset, Example, tokenise
from xsalt.errors import UserError
from xsalt.logging import say
from xsalt.memory import give_back_freed_memory, limit_primitive_cache
from xsalt.models.auto import build_model, match_classes, rebuild, reorder_classes
from xsalt.models.pretrained import Pretrained, open_pretrained
from xsalt.nn.dropout import set_dropout_key
from xsalt.nn.precision import bf16_is_native
from xsalt.optim.adamw import in_one_pass, make_adamw
from xsalt.protocols import Needs
from xsalt.registry import REGISTRIES
from xsalt.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from xsalt.training.lock import locked
from xsalt.training.quality import record_augmentation
from xsalt.training.report import evaluate_languages, source_score
from xsalt.training.resume import Checkpoints, trained
from xsalt.training.saving import written
from xsalt.training.show import show_batch
from xsalt.training.signals import Interrupted
from xsalt.training.state import State
from xsalt.training.step import TrainStep
from xsalt.training.tables import table_of, with_augmentation
from xsalt.training.trainer import Trainer

DEFAULT_VOCABULARY = 8000
"""Pieces of a tokenizer that is trained on the data, for ``pretrained=null`` without ``tokenizer``."""


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises ``UserError`` if CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this machine has no CUDA device: use device=cpu or device=auto")
    device = torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))
    if device.type == "cuda" and distributed.world_size() > 1:
        own, there = distributed.local_rank(), torch.cuda.device_count()
        if own >= there:
            raise UserError(
                f"device=cuda: {own + 1} ranks or more on a machine with {there} CUDA devices: start {there}"
            )
        torch.cuda.set_device(own)
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 where the device has bfloat16 instructions; others emulate them, 100 times slower."""
    native = bf16_is_native(device.type)
    if name == "bf16" and not native:
        say("warning: precision=bf16: this processor has no bfloat16 instructions, float32 is much faster on it")
    return name if name != "auto" else "bf16" if native else "fp32"


def default_lr(width: int) -> float:
    """Highest learning rate by the encoder's width (*assumed*): small encoders take larger steps."""
    return 8e-5 if width <= 512 else 3e-5 if width <= 768 else 1e-5


@dataclass
class Setup:
    """What training, evaluation and distillation have in common: data, languages, tokenizer, weights."""

    config: Composed
    task: Any
    source: tuple[str, ...]
    languages: tuple[str, ...]
    """Source languages first, then the targets."""
    pretrained: Pretrained | None
    tokenizer: Tokenizer
    cache: Path
    device: torch.device
    precision: str
    _train: dict[str, list[Example]] | None = None
    _examples: dict[tuple[str, str], list[Example]] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, config: Composed, evaluated: bool = True) -> Setup:
        """Finds the data and the tokenizer; reads no weights yet.

        Args:
            evaluated: whether all languages are to be in ``eval.split``.
        """
        limit_primitive_cache()
        train = config.train
        kernels.select(train.kernels)
        device = pick_device(train.device)
        cache = cache_dir()
        task = config.build("task", config.task, train.data.root, train.data.on_error)
        source = tuple(train.source)
        known = task.languages(train.eval.split)
        if evaluated and not known and train.eval.split != EvalConfig().split:  # plain text has no dev set
            there = [split for split in ("train", "dev", "test") if task.languages(split)]
            raise UserError(f"eval.split={train.eval.split}: {task.where} has no such split; it has {', '.join(there)}")
        targets = train.languages if train.languages is not None else known
        # without such a split there is nothing to evaluate, in any language
        for language in targets if known and evaluated else ():
            if language not in known:
                split = train.eval.split
                raise UserError(
                    f"languages: the {split} split of {task.where} has no {language!r}; it has {', '.join(known)}"
                )
        languages = (*source, *(language for language in targets if language not in source))
        with distributed.first_alone():  # it may fill the cache, or put back a checkpoint that was moved aside
            pretrained = open_pretrained(train.pretrained, cache) if train.pretrained else None
        setup = cls(
            config,
            task,
            source,
            languages,
            pretrained,
            _no_tokenizer,
            cache,
            device,
            pick_precision(train.precision, device),
        )
        setup.tokenizer = setup._find_tokenizer()
        return setup

    def _find_tokenizer(self) -> Tokenizer:
        train = self.config.train
        if train.tokenizer:
            return load_tokenizer(Path(train.tokenizer))
        if self.pretrained is not None:
            return self.pretrained.tokenizer()
        say(f"training a tokenizer of {DEFAULT_VOCABULARY} pieces on the training data")
        rows = [row for examples in self.read_train().values() for row in examples]
        texts = [text for row in rows for text in (row.first, row.second) if text]
        return train_tokenizer(texts, DEFAULT_VOCABULARY, train.seed)

    def read_train(self) -> dict[str, list[Example]]:
        """Training examples of each source language, at most ``data.max_train`` of each."""
        data = self.config.train.data
        if self._train is None and data.train:
            self._train = self.task.read_files(data.train, self.source)
        elif self._train is None:
            self._train = {language: self.task.read("train", language) for language in self.source}
        return {language: rows[: data.max_train] for language, rows in self._train.items()}

    def forget_train(self) -> None:
        """Frees the texts of the training examples; ``read_train`` would read them again."""
        self._train = None

    def tell_skipped(self) -> None:
        """Says which rows were left out so far and why; nothing is dropped silently."""
        for reason, count in self.task.skipped.items():
            say(f"skipped {count} rows: {reason}")
        for message in self.task.log.messages:
            say(f"  {message}")

    def tokenise(self, examples: dict[str, list[Example]]) -> Dataset:
        """The examples as a data set; rank 0 tokenises what isn't in the cache."""
        with distributed.first_alone():
            return tokenise(examples, self.tokenizer, self.config.train.max_length, self.languages, self.cache)

    def read(self, split: str, languages: Sequence[str]) -> Dataset:
        """A split in some languages, tokenised."""
        return self.tokenise({language: self.examples(split, language) for language in languages})

    def examples(self, split: str, language: str) -> list[Example]:
        """Rows of a split. Each file is read once, so that its skipped rows are counted once."""
        if (split, language) not in self._examples:
            self._examples[split, language] = self.task.read(split, language)
        return self._examples[split, language]

    def model(self, labels: Sequence[str], mlm_head: bool) -> Any:
        """The encoder with its heads, on the device; ``init_parts`` come from ``init_from`` if there is one."""
        train = self.config.train
        model_config = component_config(
            REGISTRIES["model"], self.config.model, self.config.node("model", self.config.model)
        )
        model = build_model(model_config, self.pretrained, self.tokenizer, labels, train.dropout, mlm_head, train.seed)
        positions = model.config.max_positions
        if train.max_length > positions:
            raise UserError(
                f"max_length={train.max_length}: the model reads at most {positions} tokens: set max_length={positions}"
            )
        if train.init_from:
            other = open_pretrained(train.init_from, self.cache)
            if other.tokenizer().fingerprint != self.tokenizer.fingerprint:
                name = train.init_from
                raise UserError(f"init_from={name}: has another tokenizer than this run: use pretrained={name}")
            state = other.state()
            for part in train.init_parts:
                if not any(name.startswith(f"{part}.") for name in state):
                    raise UserError(f"init_parts: {train.init_from} has no {part}: leave it out")
            if "classifier" in train.init_parts and match_classes(other.labels or (), labels) is None:
                raise UserError(
                    f"init_from={train.init_from}: its classes are {', '.join(other.labels or ())}; the task's are "
                    f"{', '.join(labels)}: leave classifier out of init_parts"
                )
            parts = [*train.init_parts, *(["embeddings"] if "encoder" in train.init_parts else [])]
            model.load_whole_state(state, parts)
            if "classifier" in train.init_parts:
                reorder_classes(model, other, labels)
        return model.to(self.device)

    def needs(self, model: Any, train: Dataset | None) -> Needs:
        """What augmenters and criterions are built with."""
        return Needs(
            model=model,
            tokenizer=self.tokenizer,
            train=train,
            languages=self.languages,
            source=self.source,
            cache=self.cache,
            device=str(self.device),
            precision=self.precision,
            alone=len(self.config.criterions) == 1,
            augmenters={
                name: component_config(REGISTRIES["augmenter"], name, self.config.node("augmenter", name))
                for name in self.config.augmenters
            },
        )


_no_tokenizer: Any = None


def train(config: Composed) -> int:
    """Trains, evaluates every language, and leaves a run folder. Returns the exit code."""
    checkpoints = Checkpoints(config.run, config)
    if config.train.dry_run:
        checkpoints.finished()  # refuses a folder of another configuration
        setup, trainer, _ = opened(config, checkpoints)
        describe(setup, trainer)
        return 0
    if checkpoints.finished():
        say(f"{config.run}: this run is finished; its results are in {config.run / 'results.json'}")
        return 0
    with locked(config.run) if distributed.is_first() else nullcontext():
        setup, trainer, criterions = opened(config, checkpoints)
        with written(config.run):
            return fit(setup, trainer, criterions, checkpoints)


def opened(config: Composed, checkpoints: Checkpoints) -> tuple[Setup, Trainer, dict[str, Any]]:
    """Data, model and all that the loop works with; nothing of the run is written yet."""
    setup = Setup.open(config)
    torch.manual_seed(config.train.seed)
    checkpoints.tokenizer, checkpoints.labels = setup.tokenizer, tuple(setup.task.labels)
    trainer, criterions = prepare(setup, checkpoints)
    split = config.train.eval.split
    if split == "dev" or config.train.dry_run:  # a row that can't be read is told before the training, not after it
        for language in (x for x in setup.languages if x in setup.task.languages(split)):
            setup.examples(split, language)
    return setup, trainer, criterions


def fit(setup: Setup, trainer: Trainer, criterions: dict[str, Any], checkpoints: Checkpoints) -> int:
    """The run itself, from where it is. Returns the exit code."""
    trainer.total_updates()  # refuses batches that can't be made, before the folder belongs to this configuration
    if distributed.is_first():
        checkpoints.claim()
    state = checkpoints.resume(trainer)
    agree(setup, trainer, state)
    record_augmentation(setup, trainer, state, lambda dataset: table_of(setup, dataset))
    give_back_freed_memory()
    try:
        state = trainer.fit(state)
    except Interrupted as interrupted:
        checkpoints.finish()
        distributed.wait_for_all()  # the end of one process ends the others, which may be saving
        say(str(interrupted))
        return interrupted.exit_code
    finally:
        checkpoints.finish()
    checkpoint = checkpoints.load_best(trainer.step.model, state)
    evaluate_languages(setup, trainer.step.model, criterions, checkpoints.run, state, checkpoint, finished=True)
    return 0


def evaluate(config: Composed, path: Path) -> int:
    """What ``xsalt-eval`` does: a run, a checkpoint or a Hugging Face folder on ``eval.split``, in every language.

    Results go to the folder of the run, or to the one given with ``run``.
    """
    is_run = (path / "config.yaml").exists()
    stored = read_yaml(path / "config.yaml") if is_run else {}
    run = config.train.run if config.train.run != stored.get("run") else None
    folder = Path(run) if run else path if is_run else Path(f"runs/eval-{path.name}")
    for name in ("pretrained", "tokenizer", "init_from") if is_run else ():
        if getattr(config.train, name) != stored.get(name, getattr(config.train, name)):
            raise UserError(f"{name}: the weights that are evaluated are those of {path}: leave it out")
    if is_run and not run and config.train.data.root != stored.get("data", {}).get("root"):
        say(
            f"warning: results of other data than {path} was trained on take the place of its own of this split: "
            "run=DIR keeps them apart"
        )
    setup = Setup.open(config.with_changes(pretrained=str(path), tokenizer=None))
    if not setup.task.languages(config.train.eval.split):
        setup.task.read(config.train.eval.split, setup.source[0])  # raises, and says what there is
    pretrained = setup.pretrained
    assert pretrained is not None
    labels = tuple(setup.task.labels)
    classes = criterion_classes(setup)
    model = rebuild(pretrained).to(setup.device)
    needing = [name for name, cls in classes.items() if getattr(cls, "needs_mlm_head", False)]
    if needing and not pretrained.has_mlm_head:
        raise UserError(f"{path}: has no masked-language-model head, which criterion {needing[0]} needs")
    if labels and any(getattr(cls, "needs_labels", False) for cls in classes.values()):
        if pretrained.labels is None:
            raise UserError(f"{path}: has no classifier to evaluate: train one with xsalt-train pretrained={path}")
        reorder_classes(model, pretrained, labels)
    checkpoints = Checkpoints(path, config)
    needs = with_augmentation(setup, setup.needs(model, None), classes)
    criterions = {name: config.build("criterion", name, needs) for name in config.criterions}
    setup.config = config
    state, name = checkpoints.state() if is_run else None, Path(pretrained.source).name
    with written(folder, by_training=False):
        evaluate_languages(setup, model, criterions, folder, state, name, finished=folder != path or trained(path))
    return 0


def criterion_classes(setup: Setup) -> dict[str, Any]:
    """The run's criterions by name. Raises ``UserError`` for one that needs labels where the task has none."""
    classes = {name: component_class(REGISTRIES["criterion"], name) for name in setup.config.criterions}
    labelled = [name for name, cls in classes.items() if getattr(cls, "needs_labels", False)]
    if labelled and not setup.task.labels:
        raise UserError(
            f"criterion {', '.join(labelled)} needs labels, and task {setup.config.task!r} has none: "
            "use --criterion target_language_mlm"
        )
    return classes


def prepare(setup: Setup, checkpoints: Checkpoints) -> tuple[Trainer, dict[str, Any]]:
    """Everything that the loop works with."""
    config, options = setup.config, setup.config.train
    examples = setup.read_train()
    if not any(examples.values()):
        raise UserError(f"{setup.task.where}: no training examples")
    dataset = setup.tokenise(examples)
    del examples
    setup.forget_train()
    classes = criterion_classes(setup)
    needs_head = any(getattr(cls, "needs_mlm_head", False) for cls in classes.values())
    model = setup.model(setup.task.labels, needs_head)

    freeze(model, options.freeze)
    needs = setup.needs(model, dataset)
    needs = with_augmentation(setup, needs, classes)
    augmenters = [config.build("augmenter", name, needs) for name in config.augmenters]
    criterions = {name: config.build("criterion", name, needs) for name in config.criterions}

    ids = [np.unique(dataset.ids), np.array(sorted(setup.tokenizer.special_ids))]
    ids += [component.vocabulary_ids() for component in (*augmenters, *criterions.values())]
    model.embeddings.word.prepare(np.unique(np.concatenate([np.asarray(part, dtype=np.int64) for part in ids])))

    optim = options.optim
    lr = optim.lr if optim.lr is not None else default_lr(model.config.hidden_size)
    options = dataclasses.replace(options, optim=dataclasses.replace(optim, lr=lr), epochs=options.epoch_limit)
    word = model.embeddings.word
    step = TrainStep(model, criterions, setup.precision, augmenters)
    half = torch.bfloat16 if options.distributed.compress == "bf16" else None
    sharded = model.encoder if options.distributed.engine == "fsdp" else None
    one_pass = in_one_pass(p for p in step.parameters() if p.requires_grad)
    joined_step = parallel.in_parallel(step, word.weight, half, sharded, share=one_pass)
    optimizer = make_adamw(
        model, lr=lr, weight_decay=optim.weight_decay, betas=(optim.beta1, optim.beta2), eps=optim.eps
    )
    word.sparse_gradient = optimizer.takes_sparse()
    trainer = Trainer(
        config=options,
        step=step,
        optimizer=optimizer,
        train=dataset,
        augmenters=augmenters,
        folder=checkpoints.run,
        device=setup.device,
        evaluate=source_score(setup, model, criterions),
        save=lambda names, state: checkpoints.save(names, model, optimizer, state),
        check=checkpoints.check,
        show=lambda batch: show_batch(batch, setup.tokenizer),
        parallel=joined_step,
    )
    return trainer, criterions


def agree(setup: Setup, trainer: Trainer, state: State) -> None:
    """Makes sure that all ranks train the same from the same. Raises ``UserError`` if they don't."""
    known = {
        "the configuration": setup.config.hash,
        "the training set": trainer.train.fingerprint,
        "the tokenizer": setup.tokenizer.fingerprint,
        "the active word rows": hashlib.sha256(trainer.step.model.embeddings.word.active_ids.tobytes()).hexdigest(),
        "the checkpoint to resume from": str(state.update),
    }
    for number, theirs in enumerate(distributed.from_all(known)):
        for name, value in theirs.items():
            if value != known[name]:
                raise UserError(
                    f"rank {distributed.rank()} and rank {number} do not agree on {name}: "
                    "data, cache and run folder must be the same for all, on a file system that they share"
                )


def freeze(model: Any, parts: Sequence[str]) -> None:
    """Keeps these parts of the model as they are. Raises ``UserError`` if one is not there or nothing is left."""
    for part in parts:
        if getattr(model, part) is None:
            raise UserError(f"freeze: the model of this run has no {part}: leave it out")
        getattr(model, part).requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"freeze=[{','.join(parts)}] leaves nothing to train")


def describe(setup: Setup, trainer: Trainer) -> None:
    """What ``dry_run=true`` prints: sizes, after one real micro-batch went through the model."""
    model = trainer.step.model
    batch = trainer.draw(trainer.plan(0)[0][0], 0, 0.0).to(setup.device)
    set_dropout_key(model, trainer.config.seed, 0, batch)
    counts = {name: float(criterion.count(batch)) for name, criterion in trainer.step.criterions.items()}
    loss, _ = trainer.step(batch, counts)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        json.dumps(
            {
                "train_examples": len(trainer.train),
                "languages": list(setup.languages),
                "updates": trainer.total_updates(),
                "trained_parameters": parameters,
                "active_rows": len(model.embeddings.word.active_ids),
                "first_loss": round(float(loss.detach()), 4),
                "world_size": distributed.world_size(),
                "run": str(setup.config.run),
            },
            indent=2,
        )
    )
