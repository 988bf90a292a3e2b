"""The contestant xsalt: a run as ``xsalt-train`` makes it, trained some updates at a time. See ``worker.py``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worker import peak_memory_gb, serve

from xsalt.batch import Layout
from xsalt.data.dataset import Dataset
from xsalt.distill.table import build_table, target_languages
from xsalt.evaluation.evaluate import classify
from xsalt.models.auto import rebuild
from xsalt.nn.dropout import KeyedDropout
from xsalt.nn.embedding import ActiveRows
from xsalt.text.vocabulary_backends import build_vocabularies
from xsalt.training import trainer as training_loop
from xsalt.training.resume import Checkpoints
from xsalt.training.run import Setup, prepare
from xsalt.training.state import State
from xsalt_cli.front import compose
from xsalt_cli.train import SCRIPT


class Ours:
    """A run. ``words``: the command line of ``xsalt-train``; ``without``: what to leave out, to see what it brings."""

    def __init__(self, words: list[str], without: str = "") -> None:
        if without == "active rows":
            prepare_some = ActiveRows.prepare
            ActiveRows.prepare = lambda word, ids: prepare_some(word, np.arange(word.vocab_size))  # type: ignore[method-assign]
        folder = tempfile.mkdtemp(prefix="xsalt-benchmark-")
        steady = ("optim.schedule=constant", "optim.warmup=0", "eval.patience=null")
        config = compose(SCRIPT, [*words, *steady, f"run={folder}/run"])
        self.setup = Setup.open(config)
        torch.manual_seed(config.train.seed)
        self.trainer, _ = prepare(self.setup, Checkpoints(config.run, config))
        self.trainer.evaluate = None
        self.trainer.save = lambda name, state: None
        config.run.mkdir(parents=True)
        self.state = State()
        self.tokens, self.flops = 0, 0.0
        self.leave_out(without)

    def leave_out(self, what: str) -> None:
        trainer = self.trainer
        if what in ("active rows", "rows touched alone"):
            trainer.step.model.embeddings.word.sparse_gradient = False
        elif what == "one-pass AdamW":
            trainer.step.model.embeddings.word.sparse_gradient = False
            trainer.optimizer.takes_sparse = lambda: False  # type: ignore[method-assign]
        elif what == "batches of similar length":
            order = np.random.default_rng(0).permutation(len(trainer.train))
            trainer.plan = lambda epoch: [[part] for part in np.split(order, range(32, len(order), 32))]  # type: ignore[method-assign]
        elif what == "drawing ahead":
            training_loop.prefetched = lambda make, items: (make(item) for item in items)  # type: ignore[assignment]

    def dump(self, file: str, updates: int) -> dict[str, Any]:
        """Writes tokens, labels and the batches of the next updates for the other contestants."""
        train, plan, epoch = self.trainer.train, [], 0
        while len(plan) < updates:
            plan += [batches[0] for batches in self.trainer.plan(epoch)]
            epoch += 1
        members = np.concatenate(plan[:updates])
        lengths = np.array([len(batch) for batch in plan[:updates]])
        dump_dataset(file, train, members=members, sizes=lengths)
        return {"examples": len(train), "mean_tokens": float(train.lengths.mean())}

    def dropout(self, p: float) -> None:
        for module in self.trainer.step.modules():
            if isinstance(module, KeyedDropout):
                module.p, module.threshold = p, round(p * 65536)

    def skip(self, updates: int) -> None:
        """Leaves out the next updates, so that what follows is of the same batches as a run that trained them."""
        self.state.update += updates
        self.state.in_epoch += updates
        assert self.state.in_epoch < len(self.trainer.plan(0))

    def train(self, updates: int) -> dict[str, Any]:
        """So many updates more: seconds, tokens, pairs and the loss of each update."""
        log = self.trainer.folder / "metrics.jsonl"
        end = self.state.update + updates
        self.trainer.config = replace(self.trainer.config, max_updates=end, epochs=None, log_every=1)
        before, plan = self.state.update, [self.trainer.plan(e) for e in range(self.state.epoch, self.state.epoch + 2)]
        first = self.state.in_epoch
        todo = [batches[0] for batches in (plan[0][first:] + plan[1])[:updates]]
        start = time.perf_counter()
        self.trainer.fit(self.state)
        seconds = time.perf_counter() - start
        assert self.state.update == end
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        lengths = [self.trainer.train.lengths[batch] for batch in todo]
        tokens = int(sum(of_batch.sum() for of_batch in lengths))
        self.tokens += tokens
        self.flops += sum(self.trainer.step.flops(Layout(of_batch)) for of_batch in lengths)
        return {
            "seconds": seconds,
            "pairs": sum(len(batch) for batch in todo),
            "tokens": tokens,
            "losses": [row["loss"] for row in rows if row["update"] > before],
        }

    def read(self, split: str, rows: int, file: str) -> dict[str, Any]:
        """Reads a split in all languages, the first rows of each, for ``evaluate`` here and there."""
        dataset = self.setup.read(split, self.setup.languages)
        chosen = np.concatenate([np.flatnonzero(dataset.language == i)[:rows] for i in range(len(dataset.languages))])
        self.dev = subset(dataset, chosen)
        dump_dataset(file, self.dev)
        return {"examples": len(self.dev), "languages": len(dataset.languages), "tokens": len(self.dev.ids)}

    def evaluate(self, file: str) -> dict[str, Any]:
        start = time.perf_counter()
        probability_NC = classify(self.trainer.step.model, self.dev, self.setup.precision, self.setup.device)
        seconds = time.perf_counter() - start
        np.save(file, probability_NC)
        return {"seconds": seconds}

    def augment(self, rows: int, vocabularies: str, tokens: str, few: int) -> dict[str, Any]:
        """Scores substitutions for so many examples; writes the vocabularies and a few examples for the peer."""
        options, setup = self.setup.config.train, self.setup
        assert setup.pretrained is not None
        found = build_vocabularies(setup.tokenizer, setup.languages, setup.source, options.vocabulary, setup.cache)
        targets = target_languages(found, setup.languages, setup.source)
        np.savez(vocabularies, **{language: found.ids[language] for language in targets})
        data = subset(self.trainer.train, np.arange(rows))
        dump_dataset(tokens, subset(data, np.arange(few)))
        model, folder = rebuild(setup.pretrained), Path(tempfile.mkdtemp()) / "table"
        start = time.perf_counter()
        build_table(model, setup.tokenizer, data, targets, found, options.distill, "mlm", folder, "")
        return {"seconds": time.perf_counter() - start, "tokens": len(data.ids), "languages": len(targets)}

    def facts(self) -> dict[str, Any]:
        model = self.trainer.step.model
        return {
            "peak_memory_gb": peak_memory_gb(),
            "flops_per_token": self.flops / max(1, self.tokens),
            "all_flops_per_token": 6.0 * model.encoder.weight_products(Layout(np.ones(1, dtype=np.int64))),
            "active_rows": len(model.embeddings.word.active_ids),
        }


def subset(dataset: Dataset, chosen: np.ndarray) -> Dataset:
    """The data set of these examples alone."""
    lengths = dataset.lengths[chosen]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    where = np.arange(offsets[-1]) + np.repeat(dataset.offsets[chosen] - offsets[:-1], lengths)
    return replace(
        dataset,
        ids=dataset.ids[where],
        type=dataset.type[where],
        special=dataset.special[where],
        offsets=offsets,
        label=dataset.label[chosen],
        language=dataset.language[chosen],
        uids=[dataset.uids[i] for i in chosen],
    )


def dump_dataset(file: str, dataset: Dataset, **more: np.ndarray) -> None:
    np.savez(file, ids=dataset.ids, offsets=dataset.offsets, type=dataset.type, label=dataset.label, **more)


if __name__ == "__main__":
    ours = Ours(**json.loads(sys.argv[1]))
    names = ("dump", "dropout", "skip", "train", "read", "evaluate", "augment", "facts")
    Path(ours.trainer.folder).mkdir(exist_ok=True)
    serve({name: getattr(ours, name) for name in names})
