"""Whatever is wrong with the input: one clear line, exit code 2, no traceback, no half-made run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import TINY, write_nli
from xsalt_cli.train import main


def append(name: str, line: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes() + line)

    return edit


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def empty(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(b"")

    return edit


def directory(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return edit


def everything(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def nothing(folder: Path) -> None:
    """The data are good; the command line is not."""


TRAIN = "train-en.tsv"
FAULTS: list[tuple[str, Callable[[Path], None], list[str], list[str]]] = [
    # what is wrong, how it comes about, keys, words that the line must have
    ("missing file", remove(TRAIN), [], ["train"]),
    ("missing training file", nothing, ["data.train=/nowhere/train.tsv"], ["/nowhere/train.tsv"]),
    ("empty file", empty(TRAIN), [], [TRAIN, "empty"]),
    ("wrong number of columns", append(TRAIN, b"only one\n"), [], [f"{TRAIN}:98", "column"]),
    ("too many columns", append(TRAIN, b"a\tb\tneutral\tmore\n"), [], [f"{TRAIN}:98", "column"]),
    (
        "unknown label",
        append(TRAIN, b"a\tb\tmaybe\n"),
        [],
        [f"{TRAIN}:98", "maybe", "entailment, neutral, contradiction"],
    ),
    ("invalid UTF-8", append(TRAIN, b"a \xff\xfe\tb\tneutral\n"), [], [f"{TRAIN}:98", "UTF-8"]),
    ("a NUL byte", append(TRAIN, b"a\x00\tb\tneutral\n"), [], [f"{TRAIN}:98", "NUL"]),
    ("a 10 MB line", append(TRAIN, b"a" * 10_000_000 + b"\tb\tneutral\n"), [], [f"{TRAIN}:98", "long"]),
    ("a directory in place of a file", directory(TRAIN), [], [TRAIN]),
    ("a directory as training file", nothing, ["data.train=/tmp"], ["/tmp", "directory"]),
    ("a folder with no data", everything, [], ["no data"]),
    ("a folder that does not exist", nothing, ["data.root=/nowhere/data"], ["/nowhere/data"]),
    ("a file as data folder", nothing, [f"data.root={__file__}"], ["test_bad_input.py"]),
    ("a misspelt key", nothing, ["optim.wamup=0.1"], ["optim.wamup", "did you mean 'optim.warmup'"]),
    ("a value of the wrong type", nothing, ["epochs=many"], ["epochs", "many"]),
    ("a value out of range", nothing, ["dropout=1.5"], ["dropout", "1.5"]),
    ("a misspelt augmenter", nothing, ["augmenter=codeswich"], ["codeswich", "did you mean 'codeswitch'"]),
    ("a misspelt task", nothing, ["task=xlni"], ["unknown task 'xlni': did you mean 'xnli'"]),
    ("a language that the data lacks", nothing, ["languages=de"], ["'de'", "en, fr, ru"]),
    ("a source language that the data lacks", nothing, ["source=de"], ["de"]),
    ("a checkpoint that does not exist", nothing, ["pretrained=/nowhere/model"], ["/nowhere/model"]),
    ("a sequence longer than the model reads", nothing, ["model.max_positions=4"], ["max_length"]),
    ("cuda where there is none", nothing, ["device=cuda"], ["cuda"]),
]


@pytest.mark.parametrize(("what", "spoil", "keys", "words"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_it_is_one_line_and_exit_code_2(
    what: str,
    spoil: Callable[[Path], None],
    keys: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    if what.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    data = write_nli(tmp_path / "data")
    spoil(data)
    given = {key.partition("=")[0] for key in keys}
    base = [key for key in TINY if key.partition("=")[0] not in given]
    root = [] if "data.root" in given else [f"data.root={data}"]
    task = [] if "task" in given else ["--task", "xnli"]
    assert main([*task, *root, f"run={tmp_path / 'run'}", "epochs=1", *base, *keys]) == 2
    check_line(capsys.readouterr().err, words)
    assert not (tmp_path / "run" / "checkpoints").exists()


def check_line(stderr: str, words: list[str]) -> None:
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("xsalt-train: error: ")
    assert "Traceback" not in stderr
    for word in words:
        assert word in last


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("fitting")
    data = write_nli(base / "data")
    assert main(["--task", "xnli", f"data.root={data}", f"run={base / 'run'}", "epochs=1", *TINY]) == 0
    return base / "run"


def test_a_checkpoint_of_another_architecture_is_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = json.loads((run / "checkpoints" / "best" / "config.json").read_text())
    other = "bert" if stored["architecture"] == "xlm-roberta" else "xlm-roberta"
    data = write_nli(tmp_path / "data")
    keys = [f"data.root={data}", f"run={tmp_path / 'run'}", f"pretrained={run}", "device=cpu"]
    assert main(["--task", "xnli", "--model", other, *keys]) == 2
    check_line(capsys.readouterr().err, [other, stored["architecture"], "--model auto"])


def test_a_tokenizer_that_does_not_fit_the_checkpoint_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_nli(tmp_path / "data")
    vocabulary = tmp_path / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5000))]
    vocabulary.write_text("\n".join(pieces) + "\n")
    keys = [
        f"data.root={data}",
        f"run={tmp_path / 'run'}",
        f"pretrained={run}",
        f"tokenizer={vocabulary}",
        "device=cpu",
    ]
    assert main(["--task", "xnli", *keys]) == 2
    check_line(capsys.readouterr().err, ["5005"])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_truncated_checkpoint_is_refused_by_file_name(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run / "checkpoints" / "best", copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:-20])
    data = write_nli(tmp_path / "data")
    assert (
        main(["--task", "xnli", f"data.root={data}", f"run={tmp_path / 'run'}", f"pretrained={copy}", "device=cpu"])
        == 2
    )
    check_line(capsys.readouterr().err, [name])


def test_bad_rows_can_be_skipped_and_are_counted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_nli(tmp_path / "data")
    append(TRAIN, b"a\tb\tmaybe\nonly one\n")(data)
    keys = [f"data.root={data}", f"run={tmp_path / 'run'}", "epochs=1", "data.on_error=skip", *TINY]
    assert main(["--task", "xnli", *keys]) == 0
    err = capsys.readouterr().err
    assert "skipped 2 rows" in err and f"{TRAIN}:98" in err and f"{TRAIN}:99" in err
    skipped = json.loads((tmp_path / "run" / "results.json").read_text())["skipped"]
    assert list(skipped.values()) == [2]
