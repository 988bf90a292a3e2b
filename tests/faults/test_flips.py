"""A flipped bit or a cut in any file that xsalt writes and reads back is refused by name, repaired, or changes nothing.
The long run is ``python tests/faults/long.py flips --cases 1000``."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.flips import SUBJECTS, Subject, make_checkpoint, trials
from xsalt import checkpoint
from xsalt.errors import UserError
from xsalt.models.pretrained import open_pretrained
from xsalt.training.resume import _state

CASES = 50


@pytest.mark.parametrize("name", SUBJECTS)
def test_no_damage_goes_unnoticed(name: str, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    (tmp_path / "subject").mkdir()
    found = list(itertools.islice(trials(subject, tmp_path / "subject", 0), CASES))
    assert [flip for flip in found if flip.end == "fault"] == []
    ends = Counter(flip.end for flip in found)
    assert ends["healed" if subject.heals else "refused"] > CASES / 2
    assert len({flip.file for flip in found}) >= len({p for p in (tmp_path / "subject").rglob("*") if p.is_file()})


def test_the_trial_sees_a_silent_difference_and_an_error(tmp_path: Path) -> None:
    """What the test above rests on: a format without checksums does not pass."""

    def make(folder: Path) -> None:
        np.save(folder / "x.npy", np.arange(100))

    def read(folder: Path, _: object) -> str:
        return str(np.load(folder / "x.npy").tolist())

    (tmp_path / "subject").mkdir()
    found = list(itertools.islice(trials(Subject("bare", make, read), tmp_path / "subject", 0), 30))
    reasons = {flip.reason.split(":")[0] for flip in found if flip.end == "fault"}
    assert {"another result", "ValueError"} <= reasons


def test_a_state_read_by_itself_is_verified(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    last = tmp_path / "last"
    assert checkpoint.read_state(last) == {"update": 3}
    (last / "model.safetensors").unlink()
    assert checkpoint.read_state(last) == {"update": 3}
    path = last / "state.json"
    path.write_text(path.read_text().replace("3", "2"))
    with pytest.raises(UserError, match=r"state\.json: damaged"):
        checkpoint.read_state(last)


@pytest.mark.parametrize("changes", [{"update": "3"}, {"update": True}, {"wall_s": []}, {"resumed_from": 3}])
def test_a_state_of_other_types_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"state\.json: {next(iter(changes))} is"):
        _state(changes, tmp_path / "state.json")
    assert _state({"update": 3, "wall_s": 1, "best": None, "of_later_versions": 1}, tmp_path).update == 3


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/../../b"])
def test_a_manifest_names_nothing_outside_its_folder(name: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    (tmp_path / "outside.safetensors").write_bytes((tmp_path / "last" / "model.safetensors").read_bytes())
    path = tmp_path / "last" / "manifest.json"
    content = json.loads(path.read_text())
    content["files"][name] = content["files"]["model.safetensors"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="lies outside the checkpoint"):
        checkpoint.verify(tmp_path / "last")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_manifest_that_leaves_out_what_is_read_is_refused(name: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    path = tmp_path / "last" / "manifest.json"
    content = json.loads(path.read_text())
    del content["files"][name]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=name):
        open_pretrained(str(tmp_path / "last"), tmp_path)
