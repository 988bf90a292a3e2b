"""Batches on other devices; ``meta`` stands for one, as it holds no numbers that the host could read."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch

from xsalt.batch import Batch, Layout, Mix, MLMTargets

META = torch.device("meta")


def _batch() -> Batch:
    layout = Layout(np.array([2, 3], dtype=np.int64))
    token_T, one_B = torch.arange(5), torch.ones(2, dtype=torch.int64)
    return Batch(
        ids_T=token_T,
        type_T=token_T,
        layout=layout,
        uid_B=one_B,
        view_B=one_B,
        label_B=one_B,
        language_T=token_T,
        languages=("en",),
        special_T=token_T == 0,
        corpus_T=token_T,
        source_ids_T=token_T,
        mix=Mix(token_T, torch.rand(2, 1)),
        mlm=MLMTargets(token_T[:2], token_T[:2], token_T[:2]),
    )


def test_a_batch_goes_to_a_device_but_for_what_the_host_reads() -> None:
    moved = _batch().to(META)
    tensors = {
        field.name: value for field in fields(moved) if isinstance(value := getattr(moved, field.name), torch.Tensor)
    }
    host = {name for name, tensor in tensors.items() if tensor.device.type == "cpu"}
    assert host == {"uid_B", "view_B"}
    assert moved.mix is not None
    assert moved.mlm is not None
    assert moved.mix.r.device == moved.mix.other_ids_T.device == META
    assert moved.mlm.id_N.device == moved.mlm.position_N.device == META
    assert moved.mlm.language_N.device.type == "cpu"
    layout = moved.layout
    of_layout = (
        layout.offset_B1,
        layout.length_B,
        layout.first_B,
        layout.sequence_T,
        layout.position_T,
        layout.padded_T,
    )
    assert {tensor.device for tensor in of_layout} == {META}


def test_a_batch_that_is_there_already_stays_whatever_the_devices_number() -> None:
    batch = _batch()
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(META)
    assert moved.to(META) is moved


def test_positions_and_sequences_are_those_of_each_token() -> None:
    layout = _batch().layout
    assert layout.sequence_T.tolist() == layout.sequences.tolist() == [0, 0, 1, 1, 1]
    assert layout.position_T.tolist() == layout.positions.tolist() == [0, 1, 0, 1, 2]
    assert layout.length_B.tolist() == [2, 3]
