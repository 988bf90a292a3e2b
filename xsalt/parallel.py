"""Sums of gradients over ranks: ``Replicas`` (PyTorch's DistributedDataParallel), ``OneMachine`` (the same with
weights in shared memory) and ``Shards`` (its FSDP2).

Beside ``distributed``, the only file that imports ``torch.distributed``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xsalt.distributed import is_first, rank, traffic, wait_for_all, world_size
from xsalt.errors import UserError
from xsalt.shared_memory import own_rows, shared_tensors


class Alone:
    """A training step of which this process is the only one. ``Replicas`` offers the same for many."""

    def __init__(self, step: nn.Module) -> None:
        self.step = step

    def __call__(self, batch: Any, *args: Any) -> Any:
        """Loss and figures of the step. ``batch``: None if this rank has no example of it."""
        return self.step(batch, *args)

    def accumulating(self) -> AbstractContextManager[None]:
        """Within, backward passes only add to this rank's own gradients."""
        return nullcontext()

    def finish(self) -> None:
        """After the last backward pass of an update: the gradients are then those of all ranks, summed."""

    def settle(self) -> None:
        """Before anything but the step reads the weights: they are then those of the last update, whole."""

    def close(self) -> None:
        """After the last update: what each rank does with its weights from then on is its own affair."""


class Replicas(Alone):
    """A copy of the step on every rank, by PyTorch's ``DistributedDataParallel``: gradients are summed, not averaged,
    since the loss is normalised by the counts of all ranks already.

    Args:
        table: a parameter of which an update touches few rows. It is left out of the buckets; ``finish`` exchanges the
            rows that any rank touched.
        dtype: what gradients are sent and added up in; None: what they are.
        hook: DDP's, what becomes of a bucket of gradients; None: an all-reduce. It must not refer to the replicas: C++
            keeps it, so they would never be freed.
    """

    def __init__(
        self,
        step: nn.Module,
        table: nn.Parameter | None,
        dtype: torch.dtype | None = None,
        hook: Callable[[Any], torch.futures.Future[Tensor]] | None = None,
    ) -> None:
        self.table, self.dtype = table, dtype
        held = _Held(step)
        left_out = [name for name, parameter in held.named_parameters() if parameter is table]
        left_out += [name for name, _ in held.named_buffers()]  # which are functions of the data, the same everywhere
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(held, left_out)  # type: ignore[no-untyped-call]
        # A rank may use less than others: one without examples, or with nothing to predict by a head.
        ddp = DistributedDataParallel(held, find_unused_parameters=True, gradient_as_bucket_view=True)
        hook = hook or partial(_sum_bucket, dtype=dtype)
        ddp.register_comm_hook(None, lambda state, bucket: hook(bucket))
        super().__init__(ddp)

    def accumulating(self) -> AbstractContextManager[None]:
        return self.step.no_sync()  # type: ignore[operator,no-any-return]

    def finish(self) -> None:
        if self.table is not None and self.table.requires_grad:
            self.table.grad = sum_rows(self.table.grad, self.table, self.dtype)


class OneMachine(Replicas):
    """Replicas on the CPU of one machine. They share the weights and AdamW's moments, of which each rank updates some
    rows of every parameter, and it alone needs the gradients of these: the others leave them in shared memory.

    After ``finish`` a gradient is the sum over ranks in the rows that this rank updates (``shared_part``), and this
    rank's own in the others. Weights are written between ``finish`` and what ranks next wait for each other with:
    the counts of the next update, which come before its forward pass, or ``settle``.
    """

    @classmethod
    def of(cls, step: nn.Module, table: nn.Parameter | None, dtype: torch.dtype | None) -> OneMachine | None:
        """None where ranks can't share memory."""
        trained = [p for p in step.parameters() if p.requires_grad]
        if not all(p.ndim for p in trained):
            return None
        like: list[Any] = [(p.shape, p.dtype) for p in trained for _ in ("weight", "exp_avg", "exp_avg_sq")]
        like += [((world_size(), *p.shape), dtype or p.dtype) for p in trained if p is not table]
        memory = shared_tensors(like)
        if memory is None:
            return None
        tensors = iter(memory)
        for p in trained:
            weight, *moments = (next(tensors) for _ in range(3))
            if is_first():
                weight.copy_(p.detach())
            p.data = weight
            p.shared_part = SharedPart(own_rows(len(p)), weight, *moments)  # type: ignore[attr-defined]
        wait_for_all()
        return cls(step, table, dtype, [_Left(p, next(tensors)) for p in trained if p is not table])

    def __init__(
        self, step: nn.Module, table: nn.Parameter | None, dtype: torch.dtype | None, lefts: Sequence[_Left]
    ) -> None:
        super().__init__(step, table, dtype, partial(_leave_bucket, {id(left.parameter): left for left in lefts}))
        self.lefts = lefts

    def finish(self) -> None:
        super().finish()
        if self.table is None or not self.table.requires_grad:
            wait_for_all()  # else the exchange of rows did
        for left in self.lefts:
            if left.parameter.grad is not None:
                own = left.parameter.grad[left.rows]
                for of_other in left.by_others:
                    own.add_(of_other)

    def settle(self) -> None:
        wait_for_all()

    def close(self) -> None:
        self.settle()
        for p in self.step.parameters():
            if shared_part(p) is not None:
                p.data = p.data.clone()
                del p.shared_part  # type: ignore[attr-defined]


class SharedPart:
    """What this rank updates of a parameter that ranks share: its rows, of the weight and of AdamW's moments."""

    def __init__(self, rows: slice, weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        self.rows, self.exp_avg, self.exp_avg_sq = rows, exp_avg, exp_avg_sq
        self.own = weight[rows], exp_avg[rows], exp_avg_sq[rows]


class _Left:
    """Where ranks leave each other the gradient of a parameter: ``memory``, its shape with the rank before it."""

    def __init__(self, parameter: nn.Parameter, memory: Tensor) -> None:
        self.parameter, self.rows = parameter, own_rows(len(parameter))
        self.by_others = [left[self.rows] for number, left in enumerate(memory) if number != rank()]
        others = [slice(self.rows.start), slice(self.rows.stop, None)]
        self.for_others = [(rows, memory[rank()][rows]) for rows in others if memory[rank()][rows].numel()]


def _leave_bucket(lefts: Mapping[int, _Left], bucket: Any) -> torch.futures.Future[Tensor]:
    """Leaves the gradients of other ranks' rows where these find them."""
    for p, grad in zip(bucket.parameters(), bucket.gradients(), strict=True):
        if id(p) in lefts:  # the parameter that means nothing is not
            for rows, place in lefts[id(p)].for_others:
                place.copy_(grad[rows])
                traffic["gradients"] += place.nbytes
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def shared_part(parameter: Any) -> SharedPart | None:
    """None for a parameter that this rank has for itself."""
    return getattr(parameter, "shared_part", None)


class _Held(nn.Module):
    """A step beside a parameter that means nothing.

    A rank whose loss depends on no other, or that has no batch at all, takes part in the sum by it. And while nothing
    uses it, DDP doesn't warn that it looked for unused parameters in vain.
    """

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step
        self.anchor = nn.Parameter(torch.zeros(1, device=next(step.parameters()).device))

    def forward(self, batch: Any, *args: Any) -> tuple[Tensor, Any]:
        loss, figures = (torch.zeros_like(self.anchor[0]), {}) if batch is None else self.step(batch, *args)
        return (loss if loss.requires_grad else loss + 0.0 * self.anchor[0]), figures


def _sum_bucket(bucket: Any, dtype: torch.dtype | None) -> torch.futures.Future[Tensor]:
    """The sum of a bucket of gradients over all ranks."""
    own: Tensor = bucket.buffer()
    sent = own if dtype is None or own.dtype == dtype else own.to(dtype)
    traffic["gradients"] += sent.nbytes
    work = dist.all_reduce(sent, async_op=True)

    def received(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        total = future.value()[0]
        return total if total is own else own.copy_(total)

    done: torch.futures.Future[Tensor] = work.get_future().then(received)
    return done


def sum_rows(grad_AD: Tensor | None, table_AD: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
    """The sum over ranks of a table's gradients, as a sparse tensor of the rows that any rank touched.

    Ranks tell each other which rows they touched (a byte a row), then add up those alone; every rank gets the same
    bits. None if no rank has a gradient.
    """
    A, D = table_AD.shape
    touched_A = torch.zeros(A + 1, dtype=torch.uint8, device=table_AD.device)  # the last one: there is a gradient
    rows_N, values_ND = touched_A[:0].long(), table_AD.new_empty(0, D)
    if grad_AD is not None and grad_AD.is_sparse:
        grad_AD = grad_AD.coalesce()
        rows_N, values_ND = grad_AD.indices()[0], grad_AD.values()
    elif grad_AD is not None:
        rows_N = (grad_AD != 0).any(1).nonzero()[:, 0]
        values_ND = grad_AD[rows_N]
    touched_A[rows_N] = 1
    touched_A[A] = grad_AD is not None
    traffic["rows"] += touched_A.nbytes
    dist.all_reduce(touched_A, dist.ReduceOp.MAX)
    if not touched_A[A]:
        return None
    rows_U = touched_A[:A].nonzero()[:, 0]
    sum_UD = torch.zeros(len(rows_U), D, dtype=dtype or table_AD.dtype, device=table_AD.device)
    sum_UD[torch.searchsorted(rows_U, rows_N)] = values_ND.to(sum_UD.dtype)
    traffic["rows"] += sum_UD.nbytes
    dist.all_reduce(sum_UD)
    summed = sum_UD.to(table_AD.dtype)
    return torch.sparse_coo_tensor(rows_U[None], summed, (A, D), is_coalesced=True, check_invariants=False)


class Shards(Alone):
    """Each encoder layer's weights, gradients and moments split over ranks, by PyTorch's ``fully_shard`` (FSDP2): for
    encoders that do not fit. All else is as in ``Replicas``, added up in one all-reduce by ``finish``.

    Gradients are split anew in each micro-batch, since whole ones might not fit either.
    """

    def __init__(
        self, step: nn.Module, table: nn.Parameter | None, encoder: nn.Module, dtype: torch.dtype | None = None
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # About in-place operations on hidden layers, which nobody does.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        super().__init__(step)
        self.table, self.dtype = table, dtype
        self._last: Any = None
        mesh = init_device_mesh(next(step.parameters()).device.type, (world_size(),))
        policy = MixedPrecisionPolicy(reduce_dtype=dtype)
        for module in (*encoder.layers, encoder):  # type: ignore[misc]
            sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
            _count_traffic(sharded)
        # By default FSDP gathers ahead in the reverse order of all forward passes since the last update, which differs
        # from rank to rank where each evaluates a share of its own: so the order is said.
        layers: list[Any] = list(encoder.layers)  # type: ignore[arg-type]
        for before, layer in zip([encoder, *layers], [*layers, encoder], strict=True):
            layer.set_modules_to_backward_prefetch([before])
        self.rest = [p for p in step.parameters() if p.requires_grad and p is not table and not is_sharded(p)]

    def __call__(self, batch: Any, *args: Any) -> Any:
        if batch is not None:
            self._last = batch
            return self.step(batch, *args)
        if self._last is None:
            raise UserError(f"a batch has fewer examples than there are ranks ({world_size()}): raise batch.size")
        loss, _ = self.step(self._last, *args)  # weights are gathered layer by layer: no rank may skip one
        return loss * 0.0, {}

    def finish(self) -> None:
        if self.rest:
            device = self.rest[0].device
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.rest]
            there = torch.tensor([float(p.grad is not None) for p in self.rest], device=device)
            flat = torch.cat([there.to(grads[0].dtype), *(grad.flatten() for grad in grads)])
            sent = flat if self.dtype is None else flat.to(self.dtype)
            traffic["gradients"] += sent.nbytes
            dist.all_reduce(sent)
            there, *sums = torch.split(sent.to(flat.dtype), [len(self.rest), *(p.numel() for p in self.rest)])
            for p, found, total in zip(self.rest, there.tolist(), sums, strict=True):
                p.grad = total.view_as(p) if found else None
        if self.table is not None and self.table.requires_grad:
            self.table.grad = sum_rows(self.table.grad, self.table, self.dtype)


def _count_traffic(sharded: Any) -> None:
    """Has a module of FSDP2 count what it gathers and reduces."""
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

    class Gather(DefaultAllGather):
        def __call__(self, output_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            traffic["weights"] += output_tensor.nbytes
            return super().__call__(output_tensor, *args, **kwargs)

    class Reduce(DefaultReduceScatter):
        def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            traffic["gradients"] += input_tensor.nbytes
            return super().__call__(output_tensor, input_tensor, *args, **kwargs)

    sharded.set_custom_all_gather(Gather())
    sharded.set_custom_reduce_scatter(Reduce())


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of the tensor only."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in the same memory; another tensor as it is."""
    split: Any = tensor
    part: Tensor = split.to_local() if is_sharded(tensor) else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together from all ranks, each of which must call it; another tensor as it is."""
    split: Any = tensor
    complete: Tensor = split.full_tensor() if is_sharded(tensor) else tensor
    return complete


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, split as the parameter is, if it is."""
    if not is_sharded(parameter):
        return value
    own = own_part(parameter)
    parts = value.chunk(world_size())  # along the first dimension, as fully_shard does
    split = torch.zeros_like(parameter)
    if len(own):
        own_part(split).copy_(parts[rank()])
    return split


@contextmanager
def put_together(model: nn.Module) -> Iterator[bool]:
    """Within, every rank holds all weights of a model that is split over ranks: each may compute with it as often
    as it likes. All must come here. Gives whether the model is split.
    """
    split: list[Any] = [module for module in model.modules() if hasattr(module, "set_reshard_after_forward")]
    for module in split:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield bool(split)
    finally:
        for module in split:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def in_parallel(
    step: nn.Module,
    table: nn.Parameter | None,
    dtype: torch.dtype | None = None,
    encoder: nn.Module | None = None,
    *,
    share: bool = False,
) -> Alone:
    """The step as this rank calls it: several ranks have ``Replicas``, or ``Shards`` of the encoder if it is given.

    ``share``: have replicas of one machine share the weights, if they can.
    """
    if world_size() == 1:
        return Alone(step)
    if encoder is not None:
        return Shards(step, table, encoder, dtype)
    return (OneMachine.of(step, table, dtype) if share else None) or Replicas(step, table, dtype)
