"""The encoder and its heads compute what their ``transformers`` twins compute, forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.twins import FakeTokenizer, batch, padded, save, twin
from xsalt.batch import Batch
from xsalt.models.auto import ModelConfig, build_model, rebuild
from xsalt.models.base import EncoderModel
from xsalt.models.hugging_face import read_weights
from xsalt.models.names import to_hugging_face
from xsalt.models.pretrained import open_pretrained

ARCHITECTURES = ("bert", "xlm-roberta")
LENGTHS = [pytest.param((7, 3, 11, 1, 5), id="unequal"), pytest.param((6, 6, 6), id="equal")]


def close(mine: Tensor, theirs: Tensor, bound: float = 1e-5, size: float | None = None) -> None:
    """Largest difference, relative to ``size``: the largest value there if not given."""
    assert mine.shape == theirs.shape
    difference = (mine.double() - theirs.double()).abs().max().item()
    size = theirs.double().abs().max().item() if size is None else size
    assert difference <= bound * size, f"{difference} against values up to {size}"


def opened(architecture: str, kind: str, folder: Path) -> tuple[torch.nn.Module, EncoderModel]:
    theirs = twin(architecture, kind)
    return theirs, rebuild(open_pretrained(str(save(theirs, folder)), folder))


def gradients_are_equal(theirs: torch.nn.Module, mine: EncoderModel, architecture: str) -> None:
    """Compares every parameter's gradient, ours renamed as an export renames the weights."""
    ours = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in mine.named_parameters()}
    renamed = to_hugging_face(ours, architecture, mine.config.layers, prefixed=True)
    every = dict(theirs.named_parameters(remove_duplicate=False))
    assert {id(p) for p in every.values() if p.grad is not None} == {id(every[name]) for name in renamed}
    expected = {name: every[name].grad for name in renamed}
    for name, gradient in expected.items():
        # Softmax does not see what is added to all keys: this gradient is zero but for rounding, on both sides.
        twin_of_key = name.replace("key.bias", "query.bias")
        close(renamed[name], gradient, size=expected[twin_of_key].abs().max().item())


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_logits_and_every_gradient_of_a_classifier_equal_the_twins(
    architecture: str, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    theirs, mine = opened(architecture, "SequenceClassification", tmp_path)
    b = batch(types=architecture == "bert", lengths=lengths)
    expected = theirs(**padded(b, mine.config.pad_id), labels=b.label_B, output_hidden_states=True)
    hidden = mine.encode(mine.embed(b), b.layout, keep=range(mine.config.layers + 1))
    for layer, states_BSD in enumerate(expected.hidden_states):
        close(hidden[layer], states_BSD.flatten(0, 1)[b.layout.padded_T])
    logits_BC = mine.classify(hidden, b.layout)
    close(logits_BC, expected.logits)
    expected.loss.backward()
    F.cross_entropy(logits_BC, b.label_B).backward()
    gradients_are_equal(theirs, mine, architecture)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masked_language_model_logits_and_every_gradient_equal_the_twins(
    architecture: str, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    theirs, mine = opened(architecture, "MaskedLM", tmp_path)
    b = batch(types=architecture == "bert", lengths=lengths)
    expected_TV = theirs(**padded(b, mine.config.pad_id)).logits.flatten(0, 1)[b.layout.padded_T]
    logits_TV = mine.mlm_logits(mine.encode(mine.embed(b), b.layout)[mine.mlm_layer])
    close(logits_TV, expected_TV)
    target_T = b.ids_T.flip(0)
    F.cross_entropy(expected_TV, target_T).backward()
    F.cross_entropy(logits_TV, target_T).backward()
    gradients_are_equal(theirs, mine, architecture)


def test_logits_of_chosen_ids_are_those_columns_of_all_logits(tmp_path: Path) -> None:
    _, mine = opened("xlm-roberta", "MaskedLM", tmp_path)
    h_ND = torch.randn(4, mine.config.hidden_size)
    ids_V = torch.tensor([5, 96, 3])
    close(mine.mlm_logits(h_ND, ids_V), mine.mlm_logits(h_ND)[:, ids_V])


def _bf16(mine: EncoderModel, b: Batch) -> tuple[Tensor, Tensor]:
    mine.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits_BC = mine.classify(mine.encode(mine.embed(b), b.layout), b.layout)
    F.cross_entropy(logits_BC, b.label_B).backward()
    gradient = torch.cat([p.grad.flatten() for p in mine.parameters() if p.grad is not None])
    return logits_BC.detach(), gradient


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_stays_within_two_percent_of_fp32(architecture: str, tmp_path: Path) -> None:
    theirs, mine = opened(architecture, "SequenceClassification", tmp_path)
    b = batch(types=architecture == "bert")
    expected = theirs(**padded(b, mine.config.pad_id), labels=b.label_B)
    F.cross_entropy(mine.classify(mine.encode(mine.embed(b), b.layout), b.layout), b.label_B).backward()
    gradient = torch.cat([p.grad.flatten() for p in mine.parameters() if p.grad is not None])
    logits_BC, gradient_bf16 = _bf16(mine, b)
    close(logits_BC, expected.logits.detach(), 0.02)
    assert (gradient_bf16 - gradient).norm() <= 0.02 * gradient.norm()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_prepared_on_the_ids_of_a_batch_computes_the_same(architecture: str, tmp_path: Path) -> None:
    theirs = twin(architecture, "SequenceClassification")
    pretrained = open_pretrained(str(save(theirs, tmp_path)), tmp_path)
    b = batch(types=architecture == "bert")
    model = build_model(
        ModelConfig(), pretrained, FakeTokenizer(architecture), pretrained.labels or (), 0.0, False, seed=1
    )  # type: ignore[arg-type]
    model.embeddings.word.prepare(b.ids_T.numpy())
    logits_BC = model.classify(model.encode(model.embed(b), b.layout), b.layout)
    close(logits_BC, theirs(**padded(b, model.config.pad_id)).logits)
    assert model.new_parts == ()


def test_the_weights_of_a_folder_survive_reading_and_renaming_bit_by_bit(tmp_path: Path) -> None:
    for architecture in ARCHITECTURES:
        for kind in ("SequenceClassification", "MaskedLM"):
            theirs = twin(architecture, kind)
            folder = save(theirs, tmp_path / f"{architecture}-{kind}")
            pretrained = open_pretrained(str(folder), tmp_path)
            renamed = to_hugging_face(
                read_weights(folder, architecture, pretrained.config), architecture, 3, prefixed=True
            )
            every = dict(theirs.named_parameters(remove_duplicate=False))
            assert {id(parameter) for parameter in every.values()} == {id(every[name]) for name in renamed}
            for name, value in renamed.items():
                assert torch.equal(value, every[name]), name
