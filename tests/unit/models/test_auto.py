"""``build_model`` takes what the checkpoint has, draws the rest from the seed, and refuses what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.twins import FakeTokenizer, batch, save, twin
from xsalt import checkpoint
from xsalt.errors import UserError
from xsalt.models.auto import ModelConfig, build_model, rebuild, save_model
from xsalt.models.base import EncoderModel
from xsalt.models.pretrained import Pretrained, open_pretrained

CLASSES = ("entailment", "neutral", "contradiction")
TINY = {"hidden_size": 16, "layers": 2, "heads": 2, "ffn_size": 24, "max_positions": 20}


def _pretrained(kind: str, tmp_path: Path, architecture: str = "bert") -> Pretrained:
    return open_pretrained(str(save(twin(architecture, kind), tmp_path / kind)), tmp_path)


def _build(pretrained: Pretrained | None, **changes: Any) -> EncoderModel:
    given = {"model_config": ModelConfig(), "labels": CLASSES, "dropout": 0.0, "mlm_head": False, "seed": 1} | changes
    family = given.pop("family", pretrained.architecture if pretrained else "xlm-roberta")
    return build_model(pretrained=pretrained, tokenizer=FakeTokenizer(family), **given)  # type: ignore[arg-type]


def test_parts_that_the_checkpoint_lacks_are_new_and_named(tmp_path: Path) -> None:
    classifier = _pretrained("SequenceClassification", tmp_path)
    masked = _pretrained("MaskedLM", tmp_path)
    mean = ModelConfig(pooling="mean")
    assert _build(classifier).new_parts == ()
    assert _build(classifier, labels=CLASSES[:2]).new_parts == ("classifier.out",)
    assert _build(classifier, model_config=mean).new_parts == ("classifier.out",)
    assert _build(classifier, mlm_head=True).new_parts == ("mlm_head",)
    assert _build(masked, labels=(), mlm_head=True).new_parts == ()
    assert _build(masked, mlm_head=True).new_parts == ("classifier.dense", "classifier.out")
    lower = ModelConfig(mlm_layer=1)  # a head trained on the last layer is not one for another
    assert _build(masked, labels=(), mlm_head=True, model_config=lower).new_parts == ("mlm_head",)
    bare = ModelConfig(mlm_activation="none")
    assert _build(masked, labels=(), mlm_head=True, model_config=bare).new_parts == ("mlm_head",)


def test_a_new_head_without_activation_is_the_lens(tmp_path: Path) -> None:
    """Normalised state times word row: with rows of one length the nearest row by cosine wins."""
    masked = _pretrained("MaskedLM", tmp_path)
    model = _build(masked, labels=(), mlm_head=True, model_config=ModelConfig(mlm_activation="none"))
    h_ND = torch.randn(9, model.config.hidden_size)
    rows_VD = model.embeddings.word.weight.detach()
    normed_ND = (h_ND - h_ND.mean(1, keepdim=True)) / h_ND.std(1, keepdim=True, unbiased=False)
    torch.testing.assert_close(model.mlm_logits(h_ND), normed_ND @ rows_VD.T, rtol=1e-4, atol=1e-5)


def test_a_classifier_is_taken_over_by_the_names_of_its_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = _pretrained("SequenceClassification", tmp_path)
    weight = pretrained.state()["classifier.out.weight"]

    def taken(*labels: str) -> torch.Tensor:
        model = _build(pretrained, labels=labels)
        assert model.classifier is not None
        return model.classifier.out.weight

    assert torch.equal(taken("Contradiction", "entailment", "neutral"), weight[[2, 0, 1]])
    assert _build(pretrained, labels=("anger", "joy", "fear")).new_parts == ("classifier.out",)
    unnamed = replace(pretrained, labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert torch.equal(_build(unnamed, labels=("x", "y", "z")).classifier.out.weight, weight)  # type: ignore[union-attr]
    assert "does not name its classes: taken to be x, y, z, in this order" in capsys.readouterr().err


def test_a_new_part_depends_on_the_seed_and_its_name_alone() -> None:
    tiny = ModelConfig(**TINY)  # type: ignore[arg-type]
    torch.manual_seed(1)
    first = _build(None, model_config=tiny).whole_state()
    torch.manual_seed(2)
    second = _build(None, model_config=tiny, mlm_head=True).whole_state()
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = _build(None, model_config=tiny, seed=2).whole_state()
    assert not torch.equal(first["classifier.out.weight"], third["classifier.out.weight"])
    assert abs(first["embeddings.word.weight"].std() - 0.02) < 0.002
    assert first["encoder.layers.0.ffn_norm.weight"].eq(1).all()
    assert first["encoder.layers.0.attention.qkv.bias"].eq(0).all()


@pytest.mark.parametrize(("family", "offset", "types"), [("bert", 0, 2), ("xlm-roberta", 2, 1)])
def test_from_scratch_the_tokenizer_decides_the_architecture(family: str, offset: int, types: int) -> None:
    model = _build(None, model_config=ModelConfig(**TINY), family=family)  # type: ignore[arg-type]
    assert model.architecture == family
    assert (model.config.position_offset, model.config.type_vocab_size) == (offset, types)
    b = batch(types=family == "bert")
    assert model.classify(model.encode(model.embed(b), b.layout), b.layout).shape == (5, 3)


def test_mean_pooling_reads_the_mean_of_each_sequence() -> None:
    model = _build(None, model_config=ModelConfig(**TINY, pooling="mean")).eval()  # type: ignore[arg-type]
    b = batch(types=False)
    h_TD = model.encode(model.embed(b), b.layout)[2]
    logits_BC = model.classify({2: h_TD}, b.layout)
    for i, part in enumerate(h_TD.split(b.layout.lengths_B.tolist())):
        assert model.classifier is not None
        assert torch.allclose(logits_BC[i], model.classifier.out(part.mean(0)), atol=1e-6)


def test_building_and_training_a_model_leaves_the_pretrained_weights_alone(tmp_path: Path) -> None:
    pretrained = _pretrained("MaskedLM", tmp_path)
    before = {name: value.clone() for name, value in pretrained.state().items()}
    model = _build(pretrained, mlm_head=True).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    b = batch(types=True)
    hidden = model.encode(model.embed(b), b.layout, keep=(3,))
    (model.classify(hidden, b.layout).sum() + model.mlm_logits(hidden[3]).square().sum()).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in pretrained.state().items())
    assert not torch.equal(model.whole_state()["embeddings.word.weight"], before["embeddings.word.weight"])


MISFITS: list[tuple[ModelConfig, str]] = [
    (ModelConfig(name="xlm-roberta"), "--model xlm-roberta does not fit .*architecture bert: use --model auto"),
    (ModelConfig(name="bart"), "unknown model 'bart': did you mean 'bert'"),
    (ModelConfig(pooling="max"), "model.pooling='max' is not one of first, mean"),
    (ModelConfig(mlm_layer=4), "model.mlm_layer=4: the encoder has hidden layers 0 to 3"),
    (ModelConfig(mlm_activation="relu"), "model.mlm_activation='relu' is not one of gelu, none"),
]


@pytest.mark.parametrize(("config", "message"), MISFITS)
def test_what_does_not_fit_the_checkpoint_is_refused(config: ModelConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        _build(_pretrained("MaskedLM", tmp_path), model_config=config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": 3}, "model.hidden_size=16 is not a multiple of model.heads=3"), ({"layers": 0}, "model.layers=0")],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _build(None, model_config=ModelConfig(**{**TINY, **changes}))  # type: ignore[arg-type]


def test_a_state_that_does_not_fit_is_refused_by_name() -> None:
    tiny = ModelConfig(**TINY)  # type: ignore[arg-type]
    model = _build(None, model_config=tiny)
    state = model.whole_state()
    state["more"] = state.pop("classifier.out.bias")
    state["embeddings.token_type"] = torch.zeros(3, 16)
    with pytest.raises(UserError, match=r"missing.*classifier.out.bias.*unexpected.*more.*misshapen.*\[3, 16\]"):
        model.load_whole_state(state)


def test_a_checkpoint_rebuilds_the_model_it_was_saved_from(tmp_path: Path) -> None:
    tiny = ModelConfig(**TINY, pooling="mean", mlm_layer=1, mlm_activation="none")  # type: ignore[arg-type]
    model = _build(None, model_config=tiny, mlm_head=True).eval()
    run = tmp_path / "run"
    for name in ("last", "best"):
        save_model(run / "checkpoints" / name, model, FakeTokenizer("xlm-roberta"), ("x", "y", "z"))  # type: ignore[arg-type]
        opened = open_pretrained(str(run), tmp_path)
        assert opened.source.endswith(name)  # the best if there is one, else the last
    again = rebuild(opened)
    assert (again.pooling, again.mlm_layer, again.mlm_activation) == ("mean", 1, "none")
    assert opened.labels == ("x", "y", "z")
    state = model.whole_state()
    assert all(torch.equal(value, state[name]) for name, value in again.whole_state().items())
    assert opened.fingerprint == open_pretrained(str(run / "checkpoints" / "last"), tmp_path).fingerprint
    path = run / "checkpoints" / "best" / checkpoint.MODEL
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"best/{checkpoint.MODEL}"):
        open_pretrained(str(run), tmp_path)
