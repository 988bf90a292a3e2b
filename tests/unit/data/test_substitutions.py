from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xsalt.data.substitutions import SubstitutionTable, new_table, table_fingerprint
from xsalt.errors import UserError

JSON = ("manifest.json", "stats.json")
FINGERPRINT = table_fingerprint({"model": "m"})


def write(folder: Path, fingerprint: str = FINGERPRINT) -> SubstitutionTable:
    with new_table(folder, 4, ["de", "fr"], 1, fingerprint) as table:
        table.ids_NLK[:, 0, 0] = [5, -1, 7, 8]
        table.probability_NLK[:, 0, 0] = [0.9, 0, 0.2, 0.5]
        table.ids_NLK[2, 1, 0] = 9
        table.probability_NLK[2, 1, 0] = 0.75
        table.stats = {"tokens": 4}
    return SubstitutionTable.open(folder)


def test_what_was_written_is_looked_up_by_token_and_language(tmp_path: Path) -> None:
    table = write(tmp_path / "table")
    ids, probability = table.lookup(np.array([0, 2, 2, 3]), np.array([0, 0, 1, 1]))
    assert ids[:, 0].tolist() == [5, 7, 9, -1]
    np.testing.assert_allclose(probability[:, 0].astype(float), [0.9, 0.2, 0.75, 0], atol=1e-3)
    assert table.languages == ("de", "fr")
    assert table.stats() == {"tokens": 4}


def test_vocabulary_ids_are_those_that_reach_the_threshold(tmp_path: Path) -> None:
    table = write(tmp_path / "table")
    other = np.zeros(len(table), dtype=np.int32)
    assert table.vocabulary_ids(other, 0.4).tolist() == [5, 8, 9]
    assert table.vocabulary_ids(other, 0.0).tolist() == [5, 7, 8, 9]
    assert table.vocabulary_ids(other, 1.0).tolist() == []
    assert table.vocabulary_ids(other + 5, 0.0).tolist() == [7, 8, 9]


def test_a_table_for_something_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "table")
    SubstitutionTable.open(tmp_path / "table", FINGERPRINT)
    with pytest.raises(UserError, match="another model"):
        SubstitutionTable.open(tmp_path / "table", table_fingerprint({"model": "other"}))


@pytest.mark.parametrize("name", ["ids.npy", "probability.npy", "manifest.json", "stats.json"])
def test_missing_truncated_and_altered_files_are_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "table")
    path = tmp_path / "table" / name
    content = path.read_bytes()
    for at in range(0, len(content), 7 if name.endswith("json") else 31):
        altered = bytearray(content)
        altered[at] ^= 1 << at % 8
        path.write_bytes(altered)
        with pytest.raises(UserError, match=rf"{name}: .*(altered|damaged).*: delete the folder"):
            SubstitutionTable.open(tmp_path / "table")
    for left in (content[:-3], b""):
        path.write_bytes(left)
        with pytest.raises(UserError, match=f"{name}: .*(bytes instead of|damaged)"):
            SubstitutionTable.open(tmp_path / "table")
    path.unlink()
    with pytest.raises(UserError, match="missing" if name != "manifest.json" else "no substitution table there"):
        SubstitutionTable.open(tmp_path / "table")


def test_columns_of_synonyms_are_known(tmp_path: Path) -> None:
    assert write(tmp_path / "plain").source == ()
    with new_table(tmp_path / "table", 4, ["de", "en"], 1, FINGERPRINT, ["en"]):
        pass
    table = SubstitutionTable.open(tmp_path / "table")
    assert (table.languages, table.source) == (("de", "en"), ("en",))
    assert table.copy_to(tmp_path / "copy").source == ("en",)


def test_statistics_are_replaced_whole(tmp_path: Path) -> None:
    table = write(tmp_path / "table")
    table.write_stats({"tokens": 5, "name": "größer"})
    assert SubstitutionTable.open(tmp_path / "table").stats() == {"tokens": 5, "name": "größer"}
    assert {p.name for p in (tmp_path / "table").iterdir()} == {"ids.npy", "probability.npy", *JSON}


def test_no_table_and_a_damaged_manifest_are_one_error_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no substitution table there"):
        SubstitutionTable.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        SubstitutionTable.open(tmp_path)


def test_a_table_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_table(tmp_path / "table", 4, ["de"], 1, FINGERPRINT):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_table_replaces_another_one_but_no_other_folder(tmp_path: Path) -> None:
    write(tmp_path / "table", "old")
    assert write(tmp_path / "table", "new").fingerprint == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["table"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="no substitution table"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_a_copy_is_a_table_too(tmp_path: Path) -> None:
    table = write(tmp_path / "table")
    copy = table.copy_to(tmp_path / "out" / "copy")
    np.testing.assert_array_equal(copy.ids_NLK, table.ids_NLK)
    table.copy_to(tmp_path / "out" / "copy")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no substitution table"):
        table.copy_to(tmp_path / "file")


def test_the_files_hold_no_paths_and_no_times(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    for name in ("ids.npy", "probability.npy", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert str(tmp_path) not in json.dumps((tmp_path / "a" / "manifest.json").read_text())
