"""Files from strangers run no code: pickles, configurations, keys of Hydra. The payloads are real ones, and each is
first shown to work."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.faults.flips import SUBJECTS
from tests.faults.readers import READERS
from tests.tiny import TINY, write_nli
from xsalt.data.arrays import read_array
from xsalt.errors import UserError
from xsalt.models.pretrained import open_pretrained
from xsalt_cli.eval import main as evaluate
from xsalt_cli.train import main as train


class Payload:
    """Unpickled, it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a payload leaves behind. Here it is seen to do so once."""
    path = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()
    path.unlink()
    return path


def zipped(path: Path, content: Any) -> None:
    torch.save(content, path)


def legacy(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


def script(path: Path, content: Any) -> None:
    """The layout of TorchScript, which ``torch.load`` would hand to ``torch.jit.load``."""
    raw = io.BytesIO()
    torch.save(content, raw)
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            target.writestr(entry, source.read(entry))
        target.writestr("archive/constants.pkl", pickle.dumps(content))


@pytest.mark.parametrize("write", [zipped, legacy, plain, script])
@pytest.mark.parametrize("where", ["the whole", "beside the tensors", "a name"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    write: Callable[[Path, Any], None], where: str, marker: Path, tmp_path: Path
) -> None:
    reader = READERS["Hugging Face bin"]
    reader.make(tmp_path)
    path = tmp_path / reader.file
    tensors = torch.load(path, weights_only=True)
    bad = Payload(marker)
    content = {"the whole": bad, "beside the tensors": {**tensors, "x": bad}, "a name": {**tensors, bad: torch.ones(1)}}
    write(path, content[where])
    with pytest.raises(UserError, match=r"pytorch_model\.bin: (holds more than tensors|cannot be read|compressed)"):
        open_pretrained(str(path.parent), tmp_path)
    assert not marker.exists()


def test_a_refused_pickle_says_what_to_do(marker: Path, tmp_path: Path) -> None:
    reader = READERS["Hugging Face bin"]
    reader.make(tmp_path)
    zipped(tmp_path / reader.file, {"x": Payload(marker)})
    with pytest.raises(UserError, match=r"might run code, so it is not read: save the weights as model\.safetensors"):
        reader.read(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_pickle_in_the_place_of_tensors_is_refused(name: str, marker: Path, tmp_path: Path) -> None:
    reader = READERS[f"checkpoint {name}"]
    reader.make(tmp_path)
    zipped(tmp_path / reader.file, {"m": Payload(marker)})
    reader.seal(tmp_path)
    with pytest.raises(UserError, match=f"{name}: cannot be read as safetensors"):
        reader.read(tmp_path)
    assert not marker.exists()


def test_arrays_of_objects_are_refused(marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    refuse(path)
    np.savez(tmp_path / "ids.npz", ids=np.array([Payload(marker)], dtype=object))
    (tmp_path / "ids.npz").replace(path)
    refuse(path)
    plain(path, Payload(marker))
    refuse(path)
    assert not marker.exists()


def refuse(path: Path) -> None:
    with pytest.raises(UserError, match=r"ids\.npy: not an array"):
        read_array(path, np.int32, 1)


@pytest.mark.parametrize("name", ["token cache", "cached table"])
def test_a_cache_with_a_payload_is_made_anew(name: str, marker: Path, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    folder = tmp_path / "cache"
    folder.mkdir()
    made = subject.make(folder)
    whole = subject.read(folder, made)
    for path in folder.rglob("*.npy"):
        np.save(path, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    assert subject.read(folder, made) == whole
    assert not marker.exists()


# --- configurations


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("trained")
    data = write_nli(base / "data")
    assert train(["--task", "xnli", f"data.root={data}", f"run={base / 'run'}", "epochs=1", *TINY]) == 0
    return base / "run"


def callback(marker: Path) -> dict[str, Any]:
    """What Hydra would call at the start of a sweep. (It knows ``os.system`` by name and refuses that one itself.)"""
    return {"hydra": {"callbacks": {"x": {"_target_": "pathlib.Path.touch", "_args_": [str(marker)]}}}}


STORED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "callbacks of Hydra": callback,
    "a launcher of Hydra": lambda marker: {"hydra": {"launcher": {"_target_": "pathlib.Path.touch"}}},
    "a logger of Hydra": lambda marker: {"hydra": {"job_logging": {"handlers": {"x": {"()": "os.system"}}}}},
    "a target in a section": lambda marker: {"optim": {"_target_": "os.system", "command": f"touch {marker}"}},
    "a target in a component": lambda marker: {"task": {"xnli": {"_target_": "os.system"}}},
    "defaults in a component": lambda marker: {"task": {"xnli": {"defaults": [{"/hydra/callbacks": "x"}]}}},
    "a component by its path": lambda marker: {"task": {"os:system": {}}},
    "a resolver": lambda marker: {"data": {"root": "${oc.env:HOME}"}},
    "a resolver in a name": lambda marker: {"task": {"${oc.env:HOME}": {}}},
}


@pytest.mark.parametrize("what", STORED)
def test_the_configuration_of_a_strangers_run_calls_nothing(
    what: str, trained: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = yaml.safe_load((trained / "config.yaml").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(trained / "checkpoints")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({**stored, **STORED[what](marker)}))
    for words in ([], ["--multirun", "eval.split=dev"]):
        assert evaluate([str(tmp_path / "run"), *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "unknown" in err or "an interpolation" in err, err
    assert not marker.exists()


def test_a_strangers_run_does_not_bring_its_plug_ins(
    trained: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code runs where the command line itself names a folder by --user-dir, and nowhere else."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "checkpoints"):
        (run / name).symlink_to(trained / name)
    for name in ("evil.py", "xsalt.py", "sitecustomize.py", "yaml.py", "conftest.py"):
        (run / name).write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n")
    (run / "user_dir").write_text(str(run))
    monkeypatch.chdir(run)
    assert evaluate([".", "eval.split=dev"]) == 0
    assert not marker.exists()
    modules, path = set(sys.modules), sys.path.copy()
    (run / "xsalt.py").unlink()
    (run / "yaml.py").unlink()
    try:
        assert evaluate([".", "eval.split=dev", "--user-dir", str(run)]) in (0, 2)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(run)):
                del sys.modules[name]
    assert marker.exists()


HYDRA = [
    "hydra.callbacks.x._target_=pathlib.Path.touch",
    "hydra.launcher._target_=pathlib.Path.touch",
    "hydra.sweeper={_target_:pathlib.Path.touch}",
    "hydra/job_logging=stdout",
    "hydra.job_logging.version=1",
    "hydra.searchpath=[file:///tmp]",
    "hydra.run.dir=/tmp/x",
    "hydra/callbacks=x",
]


@pytest.mark.parametrize("word", HYDRA)
def test_of_hydras_own_keys_only_launcher_and_sweeper_are_taken(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--task", "xnli", "--multirun", word, "seed=1,2"]) == 2
    assert "only launcher and sweeper can be set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--config-dir=/tmp", "--config-name=x", "--config-path=/tmp", "--experimental-rerun=x.pickle"]
)
def test_flags_of_hydra_that_read_other_files_are_unknown(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--multirun"]):
        assert train(["--task", "xnli", flag, *more]) == 2
        assert f"unknown option {flag}" in capsys.readouterr().err
