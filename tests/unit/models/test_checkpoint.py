"""Checkpoints are whole or absent, and what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xsalt import checkpoint
from xsalt.errors import UserError


def _save(folder: Path, value: float = 1.0) -> None:
    tensors = {
        checkpoint.MODEL: {"a": torch.full((3, 2), value)},
        checkpoint.OPTIMIZER: {"m": torch.arange(4)},
    }
    checkpoint.save_checkpoint(folder, tensors, {"update": 7}, lambda new: (new / "x.json").write_text("{}") and None)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    _save(tmp_path / "last")
    _save(tmp_path / "last", 2.0)  # replaces
    tensors, state = checkpoint.load_checkpoint(tmp_path / "last")
    assert torch.equal(tensors[checkpoint.MODEL]["a"], torch.full((3, 2), 2.0))
    assert torch.equal(tensors[checkpoint.OPTIMIZER]["m"], torch.arange(4))
    assert state == {"update": 7}
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_tensors_written_here_are_read_by_the_safetensors_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor | checkpoint.Parts] = {
        f"{dtype}".removeprefix("torch."): torch.rand(3, 5, generator=generator).mul(100).to(dtype)
        for dtype in (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float64, torch.bfloat16, torch.float16)
    }
    whole = torch.rand(10, 4, generator=generator)
    more = {"number": torch.tensor(3.5), "none": torch.empty(0, 7), "crosswise": whole.t()}
    parts = checkpoint.Parts((10, 4), torch.float32, lambda: iter(whole.split(3)))
    checkpoint.write_tensors(tmp_path / "x.safetensors", {**tensors, **more, "in parts": parts})
    found = load_file(tmp_path / "x.safetensors")
    expected = {**tensors, **more, "in parts": whole}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(value, torch.Tensor)
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_parts_that_do_not_make_up_the_shape_are_refused(tmp_path: Path) -> None:
    parts = checkpoint.Parts((10, 4), torch.float32, lambda: iter(torch.rand(9, 4).split(3)))
    with pytest.raises(ValueError, match="the parts of a tensor are not those that its shape promises"):
        checkpoint.write_tensors(tmp_path / "x.safetensors", {"a": parts})


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE, "x.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    _save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"" if damage == "truncated" else bytes([content[-1] ^ 1])))
    with pytest.raises(UserError, match=name):
        checkpoint.load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {"a": {}}}'])
def test_a_damaged_manifest_is_named(content: str, tmp_path: Path) -> None:
    _save(tmp_path)
    (tmp_path / checkpoint.MANIFEST).write_text(content)
    with pytest.raises(UserError, match=checkpoint.MANIFEST):
        checkpoint.load_checkpoint(tmp_path)


def test_a_save_that_fails_leaves_the_former_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    _save(tmp_path / "last")

    def fail(new: Path) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        checkpoint.save_checkpoint(tmp_path / "last", {checkpoint.MODEL: {"a": torch.zeros(1)}}, None, fail)
    tensors, _ = checkpoint.load_checkpoint(tmp_path / "last")
    assert torch.equal(tensors[checkpoint.MODEL]["a"], torch.ones(3, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    _save(tmp_path / "last")
    (tmp_path / "last").rename(tmp_path / ".last.old")
    assert checkpoint.load_checkpoint(tmp_path / "last")[1] == {"update": 7}
