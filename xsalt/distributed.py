"""Ranks, and what they tell each other. Without a group there is one.

Beside ``parallel``, the only file that imports ``torch.distributed``.

``torchrun`` starts the ranks and names them in the environment (``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``); ``joined``
makes them a group: gloo for what is on the CPU, nccl for what is on CUDA.
"""

from __future__ import annotations

import heapq
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")

PATIENCE = timedelta(days=1)
"""How long a rank waits for the others: they may be preparing data. One that has died is noticed at once."""
FAILED = "xsalt/failed"
"""Key in the group's store under which the first rank that fails leaves its number."""

traffic: Counter[str] = Counter()
"""Bytes that this rank has given to collectives so far, by what they are: ``gradients``, ``rows``, ``counts``."""
_store: Any = None


@contextmanager
def joined() -> Iterator[None]:
    """Within, this process is one rank of the group that ``torchrun`` started; alone it is the only one.

    An error leaves the group as it is: the others notice when this process ends.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _joined():
        yield
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, own, ranks = next(iter(rendezvous("env://", timeout=PATIENCE)))
    _store = PrefixStore(_name_of_start(store, own, ranks), store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", _store), rank=own, world_size=ranks, timeout=PATIENCE)
    yield
    dist.destroy_process_group()
    _store = None


def _name_of_start(store: Any, own: int, ranks: int) -> str:
    """A name that the ranks of this start share, and of no earlier one: ``torchrun`` keeps the store, with all that
    is in it, when it restarts ranks, and how often it did is not the same on all machines.

    Rank 0 makes the name up, and answers what the others say now until each has confirmed it.
    """

    def read(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    mine = uuid.uuid4().hex
    if own:
        store.set(f"hello/{own}", mine)
        while not (answer := read(f"answer/{own}")).startswith(mine):
            time.sleep(0.01)
        store.set(f"confirmed/{own}", answer[len(mine) :])
        return answer[len(mine) :]
    waiting = set(range(1, ranks))
    while waiting:
        for rank in sorted(waiting):
            if read(f"confirmed/{rank}") == mine:
                waiting.remove(rank)
            elif hello := read(f"hello/{rank}"):
                store.set(f"answer/{rank}", hello + mine)
        time.sleep(0.01)
    return mine


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0; known before the group is joined."""
    return dist.get_rank() if _joined() else int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process among those of its machine: the CUDA device that it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Ranks; known before the group is joined."""
    return dist.get_world_size() if _joined() else int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is rank 0, which alone logs and writes."""
    return rank() == 0


def wait_for_all() -> None:
    """Returns when every rank has come here."""
    if _joined():
        dist.all_reduce(torch.zeros(1))  # a barrier of gloo, whatever else there is


@contextmanager
def first_alone() -> Iterator[None]:
    """The block runs on rank 0 first, then on all others: what it makes (files of a cache) they find."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def my_share(weights: Sequence[int]) -> list[int]:
    """Numbers of the pieces of work that are this rank's, in order: each is one rank's, with weights as even as can be.

    The heaviest goes first, each to the rank that has least (Graham 1969). Without a group all pieces are ours.
    """
    if not _joined():
        return list(range(len(weights)))
    loads = [(0, number) for number in range(world_size())]
    mine = []
    for piece in sorted(range(len(weights)), key=lambda piece: -weights[piece]):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + weights[piece], number))
        if number == rank():
            mine.append(piece)
    return sorted(mine)


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """The values added up over all ranks, by one all-reduce in float64."""
    return _reduced(values, dist.ReduceOp.SUM)


def max_over_ranks(values: Sequence[float]) -> list[float]:
    """The largest of each value over all ranks, by one all-reduce in float64."""
    return _reduced(values, dist.ReduceOp.MAX)


def from_first(value: Value) -> Value:
    """Rank 0's value on every rank (a small picklable one: it goes over the ranks' own sockets)."""
    if not _joined():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Value) -> list[Value]:
    """Every rank's value, in the order of the ranks, on every rank (small picklable ones)."""
    if not _joined():
        return [value]
    found: list[Value] = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def _reduced(values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
    if not _joined():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    traffic["counts"] += tensor.nbytes
    dist.all_reduce(tensor, operation)
    result: list[float] = tensor.tolist()
    return result


def fails_first() -> bool:
    """Told by a rank that fails: whether it is the first. The others then have nothing to say, and end too."""
    if _store is None:
        return True
    try:
        return bool(_store.compare_set(FAILED, "", str(rank())) == str(rank()).encode())
    except RuntimeError:  # the store's own process has ended
        return True


def is_lost_contact(error: BaseException) -> bool:
    """Whether the error only says that another rank has ended (or that the network has)."""
    text = str(error)
    return _joined() and (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text)


def another_failed(wait_s: float = 3.0) -> bool:
    """Whether a rank has said why it failed; waits for that a little."""
    end = time.monotonic() + wait_s
    while _store is not None and time.monotonic() < end:
        try:
            if _store.check([FAILED]):
                return True
        except RuntimeError:
            return False
        time.sleep(0.05)
    return False
