"""The contestants of transformers: its ``Trainer`` and a loop by hand, on the same tokens. See ``worker.py``.

Nothing of xsalt is imported: the tokens, labels and batches come from a file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from worker import peak_memory_gb, serve

DECAY = 0.01


class Data:
    """Tokens of a data set, padded batch by batch."""

    def __init__(self, file: str, pad_id: int) -> None:
        with np.load(file) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.pad_id = pad_id
        if "sizes" in self.arrays:
            self.batches = np.split(self.arrays["members"], np.cumsum(self.arrays["sizes"])[:-1])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.arrays["offsets"])

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, members: list[int]) -> dict[str, Tensor]:
        """Padded to the longest of the batch."""
        chosen = np.asarray(members)
        lengths, starts = self.lengths[chosen], self.arrays["offsets"][chosen]
        grid = np.arange(lengths.max())
        inside = grid[None] < lengths[:, None]
        where = np.where(inside, starts[:, None] + grid[None], 0)
        ids = np.where(inside, self.arrays["ids"][where], self.pad_id)
        types = np.where(inside, self.arrays["type"][where], 0)
        return {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "token_type_ids": torch.from_numpy(types.astype(np.int64)),
            "attention_mask": torch.from_numpy(inside.astype(np.int64)),
            "labels": torch.from_numpy(self.arrays["label"][chosen]),
        }


class Theirs:
    """What both ways to train share. ``attention``: ``eager`` or ``sdpa``."""

    def __init__(self, folder: str, attention: str | None, dtype: str) -> None:
        kind = {"attn_implementation": attention} if attention else {}
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **kind)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)  # every run has one in memory
        self.bf16 = dtype == "bf16"
        self.losses: list[float] = []
        self.seen: list[np.ndarray] = []

    def dropout(self, p: float) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = p

    def load(self, file: str) -> None:
        self.data = Data(file, self.model.config.pad_token_id)

    def report(self, start: float) -> dict[str, Any]:
        """About everything since the last report."""
        members = np.concatenate(self.seen)
        answer = {
            "seconds": time.perf_counter() - start,
            "pairs": len(members),
            "tokens": int(self.data.lengths[members].sum()),
            "losses": self.losses,
        }
        self.seen, self.losses = [], []
        return answer

    def facts(self) -> dict[str, Any]:
        return {"peak_memory_gb": peak_memory_gb()}

    def evaluate(self, data: str, file: str, batch: int) -> dict[str, Any]:
        """A loop over batches sorted by length."""
        dev = Data(data, self.model.config.pad_token_id)
        probability = np.zeros((len(dev), self.model.config.num_labels), dtype=np.float32)
        order = np.argsort(dev.lengths, kind="stable")
        self.model.eval()
        start = time.perf_counter()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            for first in range(0, len(order), batch):
                members = order[first : first + batch]
                inputs = dev.collate(list(members))
                inputs.pop("labels")
                probability[members] = self.model(**inputs).logits.float().softmax(-1).numpy()
        seconds = time.perf_counter() - start
        np.save(file, probability)
        return {"seconds": seconds}


class Loop(Theirs):
    """The loop that one writes by hand, with the fused optimizer and batches of similar length."""

    def __init__(self, compiled: bool = False, lr: float = 5e-5, **more: Any) -> None:
        super().__init__(**more)
        decay = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
        self.run = torch.compile(self.model, dynamic=True) if compiled else self.model
        self.update = 0

    def train(self, updates: int) -> dict[str, Any]:
        self.model.train()
        start = time.perf_counter()
        for members in self.data.batches[self.update : self.update + updates]:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = self.run(**self.data.collate(members)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(float(loss.detach()))
            self.seen.append(members)
        self.update += updates
        return self.report(start)


class PerTrainer(Theirs):
    """``transformers.Trainer``. With ``grouped`` the batches are given, of similar length, else it draws its own."""

    def __init__(self, grouped: bool, lr: float = 5e-5, **more: Any) -> None:
        super().__init__(**more)
        self.grouped, self.lr = grouped, lr

    def serve(self) -> None:
        """Runs ``Trainer.train`` inside the command that first asks for updates; its callback takes the next ones."""
        lines = self._requests()
        request = next(lines)
        contestant = self

        class Trainer(transformers.Trainer):
            def get_train_dataloader(self) -> Any:
                data = contestant.data
                if not contestant.grouped:
                    return super().get_train_dataloader()
                sampler: Any = [[int(i) for i in batch] for batch in data.batches]
                return self.accelerator.prepare(
                    DataLoader(data, batch_sampler=sampler, collate_fn=data.collate)  # type: ignore[arg-type]
                )

            def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(model, inputs, **kwargs)
                value = loss[0] if isinstance(loss, tuple) else loss
                contestant.losses.append(float(value.detach()))
                return loss

        class Turns(transformers.TrainerCallback):
            def __init__(self) -> None:
                self.left, self.start = int(request["updates"]), time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.left -= 1
                if self.left == 0:
                    contestant.answer(contestant.report(self.start))
                    following = next(lines, None)
                    if following is None:
                        control.should_training_stop = True
                        return
                    self.left, self.start = int(following["updates"]), time.perf_counter()

        def collate(members: list[int]) -> dict[str, Tensor]:
            contestant.seen.append(np.asarray(members))
            return contestant.data.collate(members)

        if self.grouped:
            self.data.collate = self._noting(self.data.collate)  # type: ignore[method-assign]
        settings: dict[str, Any] = {"bf16": self.bf16, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
        settings |= {"per_device_train_batch_size": 32, "max_steps": 1_000_000, "learning_rate": self.lr}
        settings |= {"disable_tqdm": True, "dataloader_drop_last": False}
        if self.grouped:
            settings |= {"optim": "adamw_torch_fused", "lr_scheduler_type": "constant", "weight_decay": DECAY}
        arguments = transformers.TrainingArguments(output_dir=tempfile.mkdtemp(), **settings)
        trainer = Trainer(
            model=self.model,
            args=arguments,
            train_dataset=self.data,  # type: ignore[arg-type]
            data_collator=collate,
            callbacks=[Turns()],
        )
        trainer.train()

    def _noting(self, collate: Callable[[list[int]], dict[str, Tensor]]) -> Callable[[list[int]], dict[str, Tensor]]:
        def noting(members: list[int]) -> dict[str, Tensor]:
            self.seen.append(np.asarray(members))
            return collate(members)

        return noting

    def _requests(self) -> Iterator[dict[str, Any]]:
        """Answers everything but ``train``, which it hands out."""
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            name = request.pop("do")
            if name == "train":
                yield request
            else:
                self.answer(getattr(self, name)(**request))

    def answer(self, content: Any) -> None:
        print(json.dumps(content), file=self.out, flush=True)

    def report(self, start: float) -> dict[str, Any]:
        """The data loader is a batch ahead: what was drawn but not trained with counts the next time."""
        ahead = self.seen[len(self.losses) :]
        self.seen = self.seen[: len(self.losses)]
        answer = super().report(start)
        self.seen = ahead
        return answer


class Masked:
    """Substitutions the obvious way: for each language a pass of the masked-language model over all sentences."""

    def __init__(self, folder: str) -> None:
        self.model = transformers.AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()

    def substitute(self, tokens: str, vocabularies: str, batch: int) -> dict[str, Any]:
        data = Data(tokens, self.model.config.pad_token_id)
        order = np.argsort(data.lengths, kind="stable")
        with np.load(vocabularies) as arrays:
            ids = {language: torch.from_numpy(arrays[language].astype(np.int64)) for language in arrays.files}
        start = time.perf_counter()
        with torch.inference_mode():
            for ids_V in ids.values():
                for first in range(0, len(order), batch):
                    inputs = data.collate(list(order[first : first + batch]))
                    inputs.pop("labels")
                    probability = self.model(**inputs).logits.softmax(-1)[..., ids_V]
                    (probability / probability.sum(-1, keepdim=True)).max(-1)
        return {"seconds": time.perf_counter() - start, "tokens": len(data.arrays["ids"])}

    def facts(self) -> dict[str, Any]:
        return {"peak_memory_gb": peak_memory_gb()}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    given = json.loads(sys.argv[1])
    kind = given.pop("kind")
    if kind == "trainer":
        PerTrainer(**given).serve()
    elif kind == "masked":
        masked = Masked(**given)
        serve({"substitute": masked.substitute, "facts": masked.facts})
    else:
        loop = Loop(**given)
        serve({name: getattr(loop, name) for name in ("dropout", "load", "train", "facts", "evaluate")})
