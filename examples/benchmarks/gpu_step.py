"""Whole training steps on a GPU: xsalt's, and a loop by hand over ``transformers``. See ``gpu.py``."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_kernels import CUDA, DEVICE, distance, log_normal_lengths, synchronise
from torch import nn

from xsalt import kernels
from xsalt.batch import Batch, Layout
from xsalt.criterions.cross_entropy import CrossEntropy, CrossEntropyConfig
from xsalt.models.bert import Bert
from xsalt.nn.dropout import set_dropout_key
from xsalt.nn.encoder import EncoderConfig
from xsalt.optim.adamw import clipping, gradient_norm, make_adamw
from xsalt.training.step import TrainStep

LR, DECAY, BETAS, EPS, CLIP = 2e-5, 0.01, (0.9, 0.98), 1e-6, 1.0


def shape(tiny: bool) -> EncoderConfig:
    """e5-small's, with its vocabulary."""
    vocab, D, layers = (500, 48, 2) if tiny else (250_037, 384, 12)
    return EncoderConfig(
        vocab_size=vocab,
        hidden_size=D,
        layers=layers,
        heads=D // 16 if tiny else 12,
        ffn_size=4 * D,
        max_positions=512,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        pad_id=0,
        position_offset=0,
    )


def active_ids(tiny: bool) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.sort(rng.permutation(shape(tiny).vocab_size)[: 100 if tiny else 60_000])


def draw_batches(size: int, count: int, tiny: bool) -> list[Batch]:
    """Batches of sentences of similar length, some 40 tokens on average, in random order."""
    rng, ids = np.random.default_rng(2), active_ids(tiny)
    lengths = np.sort(log_normal_lengths(size * count, 12.0 if tiny else 40.0, 120)).reshape(count, size)
    return [_batch(lengths[i], ids, i * size, rng) for i in rng.permutation(count)]


def _batch(lengths: np.ndarray, ids: np.ndarray, first: int, rng: np.random.Generator) -> Batch:
    ids_T = torch.from_numpy(ids[rng.integers(len(ids), size=int(lengths.sum()))])
    layout, B = Layout(lengths), len(lengths)
    return Batch(
        ids_T=ids_T,
        type_T=(layout.position_T > 20).long(),
        layout=layout,
        uid_B=torch.arange(first, first + B),
        view_B=torch.zeros(B, dtype=torch.int64),
        label_B=torch.from_numpy(rng.integers(3, size=B)),
        language_T=torch.zeros_like(ids_T),
        languages=("en",),
        special_T=layout.position_T == 0,
        corpus_T=torch.full_like(ids_T, -1),
        source_ids_T=ids_T,
    )


def initialise(model: nn.Module) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                p.normal_(0.0, 0.02)
            else:
                p.fill_(1.0 if name.endswith("norm.weight") else 0.0)


class Ours:
    """xsalt's update, as its trainer makes it."""

    def __init__(self, tiny: bool, precision: str = "bf16", dropout: float = 0.1) -> None:
        torch.manual_seed(0)
        config = shape(tiny)
        config = EncoderConfig(**{**config.__dict__, "dropout": dropout, "attention_dropout": dropout})
        model = Bert(config, torch.zeros(config.vocab_size, config.hidden_size), num_labels=3)
        model.embeddings.word.prepare(active_ids(tiny))
        initialise(model)
        self.model = model.to(DEVICE).train()
        criterion: Any = CrossEntropy(CrossEntropyConfig(), None)  # type: ignore[arg-type]
        self.step = TrainStep(self.model, {"cross_entropy": criterion}, precision)
        self.optimizer = make_adamw(self.model, lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS)
        self.model.embeddings.word.sparse_gradient = self.optimizer.takes_sparse()
        self.update = 0

    def prepared(self, batches: list[Batch]) -> list[Batch]:
        return batches

    def backward(self, batch: Batch) -> torch.Tensor:
        own = self.step.count(batch)
        placed = batch.to(DEVICE)
        set_dropout_key(self.model, 1, self.update, placed)
        loss, _ = self.step(placed, own, own)
        loss.backward()
        return loss.detach()

    def train(self, batch: Batch) -> torch.Tensor:
        loss = self.backward(batch)
        norm = gradient_norm(self.step.parameters())
        self.optimizer.step(scale=clipping(norm, CLIP))
        self.optimizer.zero_grad(set_to_none=True)
        self.model.embeddings.word.decay_untouched(1.0 - LR * DECAY)
        self.update += 1
        return loss

    def flops(self, batch: Batch) -> float:
        return self.step.flops(batch.layout)


class Theirs:
    """A loop by hand: bfloat16 by autocast, SDPA, fused AdamW, padded batches of similar length, pinned memory."""

    def __init__(self, tiny: bool) -> None:
        import transformers

        config, torch_config = shape(tiny), transformers.BertConfig
        self.model = transformers.BertForSequenceClassification(
            torch_config(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.ffn_size,
                num_labels=3,
                attn_implementation="sdpa",
            )
        )
        self.model.to(DEVICE).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS, fused=True
        )
        self.of_layers = sum(p.numel() for p in self.model.bert.encoder.parameters() if p.ndim == 2)

    def prepared(self, batches: list[Batch]) -> list[tuple[Batch, dict[str, torch.Tensor]]]:
        return [(batch, self._padded(batch)) for batch in batches]

    @staticmethod
    def _padded(batch: Batch) -> dict[str, torch.Tensor]:
        B, S, place = batch.layout.size, batch.layout.longest, batch.layout.padded_T
        parts = {
            "input_ids": batch.ids_T,
            "token_type_ids": batch.type_T,
            "attention_mask": torch.ones_like(batch.ids_T),
        }
        grids = {name: part.new_zeros(B * S).index_copy(0, place, part).view(B, S) for name, part in parts.items()}
        grids["labels"] = batch.label_B
        return {name: grid.pin_memory() if CUDA else grid for name, grid in grids.items()}

    def train(self, item: tuple[Batch, dict[str, torch.Tensor]]) -> torch.Tensor:
        inputs = {name: grid.to(DEVICE, non_blocking=True) for name, grid in item[1].items()}
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss: torch.Tensor = self.model(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def flops(self, item: tuple[Batch, dict[str, torch.Tensor]]) -> float:
        return 6.0 * self.of_layers * item[0].layout.tokens


def measure_step(make: Callable[[], Any], size: int, ceiling: float, tiny: bool, updates: int) -> dict[str, float]:
    """Median of three rounds of so many updates; FLOPs are those of real tokens, without padding."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    contestant = make()
    batches = draw_batches(size, updates, tiny)
    items = contestant.prepared(batches)
    for item in items[: 1 if tiny else 5]:
        contestant.train(item)
    synchronise()
    taken = []
    for _ in range(1 if tiny else 3):
        start = time.perf_counter()
        losses = [contestant.train(item) for item in items]
        synchronise()
        taken.append(time.perf_counter() - start)
    seconds, tokens = sorted(taken)[len(taken) // 2], sum(batch.layout.tokens for batch in batches)
    return {
        "ms an update": 1e3 * seconds / updates,
        "pairs/s": size * updates / seconds,
        "tokens/s": tokens / seconds,
        "MFU": sum(contestant.flops(item) for item in items) / seconds / ceiling,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0,
        "mean loss": float(torch.stack(losses).float().mean()),
    }


def steps(ceiling: float, tiny: bool, sizes: list[int]) -> dict[str, Any]:
    """Contestants one after the other; one that fails is left out with its error."""
    found: dict[str, Any] = {}
    for size in sizes:
        for name in ("xsalt", "transformers", "xsalt, kernels=reference"):
            kernels.select("reference" if "reference" in name else "auto")
            make = (lambda: Theirs(tiny)) if name == "transformers" else (lambda: Ours(tiny))
            try:
                row: Any = measure_step(make, size, ceiling, tiny, 2 if tiny else 10 if "reference" in name else 30)
            except Exception as error:  # the others are to be measured all the same
                row = {"error": f"{type(error).__name__}: {error}"}
            finally:
                kernels.select("auto")
            found[f"batch {size}: {name}"] = row
    return found


def check_step(tiny: bool) -> dict[str, Any]:
    """Loss and gradients of a whole step with dropout, in float32: distances of the fast kernels from the reference."""
    ours, batch = Ours(tiny, "fp32"), draw_batches(4 if tiny else 16, 1, tiny)[0]
    results = []
    for name in kernels.CHOICES:
        kernels.select(name)
        loss = ours.backward(batch)
        grads = {n: p.grad.to_dense().clone() for n, p in ours.model.named_parameters() if p.grad is not None}
        ours.optimizer.zero_grad(set_to_none=True)
        results.append((float(loss), grads))
    kernels.select("auto")
    (loss, grads), (plain_loss, plain_grads) = results
    far = {name: distance(grad, plain_grads[name]) for name, grad in grads.items()}
    worst = max(far, key=lambda name: far[name])
    failed = [] if abs(loss - plain_loss) < 1e-4 and far[worst] < 1e-3 else [worst]
    return {"failed": failed, "losses": [loss, plain_loss], f"farthest gradient, {worst}": far[worst]}


def profile(tiny: bool) -> dict[str, Any]:
    """What five updates of xsalt with batches of 256 spend their time on, as a table on stderr."""
    import sys

    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as trace

    ours, batches = Ours(tiny), draw_batches(4 if tiny else 256, 5, tiny)
    for batch in batches[:3]:
        ours.train(batch)
    with trace(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]) as traced:
        for batch in batches:
            ours.train(batch)
        synchronise()
    averages = traced.key_averages()
    for by in ("self_cuda_time_total", "self_cpu_time_total") if CUDA else ("self_cpu_time_total",):
        print(averages.table(sort_by=by, row_limit=25, max_name_column_width=60), file=sys.stderr)
    return {}
