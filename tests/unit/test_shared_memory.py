"""What ranks of one machine share; real ranks do in tests/distributed."""

from __future__ import annotations

import os

import pytest
import torch

from xsalt import shared_memory
from xsalt.shared_memory import own_rows, shared_tensors

LIKE = [((3, 5), torch.float32), ((7,), torch.bfloat16), ((2, 1, 4), torch.float32)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [0, 1, 3, 8, 100])
def test_ranks_have_all_rows_between_them_and_none_twice(
    ranks: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "world_size", lambda: ranks)
    found = []
    for number in range(ranks):
        monkeypatch.setattr(shared_memory, "rank", lambda number=number: number)
        found.append(range(rows)[own_rows(rows)])
    assert [row for part in found for row in part] == list(range(rows))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_shared_tensors_are_zeros_of_their_own_that_begin_at_cache_lines_and_leave_no_file_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    tensors = shared_tensors(LIKE)
    assert tensors is not None and len(os.listdir("/proc/self/fd")) == before
    for number, (tensor, (shape, dtype)) in enumerate(zip(tensors, LIKE, strict=True)):
        assert (tuple(tensor.shape), tensor.dtype, tensor.data_ptr() % 64) == (shape, dtype, 0)
        assert not tensor.any()
        tensor.fill_(number + 1)
    assert [sorted(set(tensor.flatten().tolist())) for tensor in tensors] == [[1.0], [2.0], [3.0]]


def test_ranks_of_several_machines_or_without_such_memory_share_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "from_all", lambda own: [own, ("another boot", own[1])])
        assert shared_tensors(LIKE) is None
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "_machine", lambda: None)
        assert shared_tensors(LIKE) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _no_space)
        assert shared_tensors(LIKE) is None
    with monkeypatch.context() as patch:
        patch.delattr(os, "memfd_create")
        assert shared_tensors(LIKE) is None


def _no_space(file: int, start: int, size: int) -> None:
    raise OSError(28, "No space left on device")
