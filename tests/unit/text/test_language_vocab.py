from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from xsalt.config_distill import VocabularyConfig
from xsalt.errors import UserError
from xsalt.text import language_vocab
from xsalt.text.language_vocab import LanguageVocabularies, build_vocabularies, has_letters, letters_V, overlaps
from xsalt.text.tokenizer import Tokenizer

WORDS = ["▁the", "▁cat", "▁chat", "▁le", "▁12", "▁12th", ".", "▁", "s", "кот", "▁кот", "แมว", "▁แมว"]


def make_tokenizer(extra: tuple[str, ...] = ()) -> Tokenizer:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, *extra, "<mask>"]
    model = tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return Tokenizer(backend, "xlm-roberta", "test")


def write(folder: Path, **texts: str) -> VocabularyConfig:
    for language, text in texts.items():
        (folder / f"{language}.txt").write_text(text, encoding="utf-8")
    return VocabularyConfig(text=str(folder), backend="corpus", min_count=2)


def pieces_of(tokenizer: Tokenizer, ids: np.ndarray) -> set[str]:
    return {tokenizer.piece(int(i)) for i in ids}


@pytest.mark.parametrize(
    ("piece", "expected"),
    [("▁cat", True), ("##ing", True), ("▁12", False), ("▁12th", False), ("...", False), ("▁", False), ("中", True)],
)
def test_only_pieces_with_letters_and_without_digits_count(piece: str, expected: bool) -> None:
    assert has_letters(piece) is expected


def test_special_pieces_never_count() -> None:
    tokenizer = make_tokenizer()
    assert not letters_V(tokenizer)[sorted(i for i in tokenizer.special_ids if i is not None)].any()


def test_shared_pieces_go_to_the_language_where_they_are_at_least_as_frequent(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = write(tmp_path, en="the cat the cat le\n" * 3, fr="le chat le chat the\n" * 3)
    vocabularies = build_vocabularies(tokenizer, ["fr"], ["en"], config, tmp_path / "cache")
    assert pieces_of(tokenizer, vocabularies.ids["fr"]) == {"▁le", "▁chat"}
    assert pieces_of(tokenizer, vocabularies.ids["en"]) == {"▁the", "▁cat", "▁le"}


def test_rare_pieces_are_left_out_and_size_keeps_the_most_frequent(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = write(tmp_path, en="the the the cat cat chat\n")
    assert pieces_of(tokenizer, build_vocabularies(tokenizer, [], ["en"], config, tmp_path / "c").ids["en"]) == {
        "▁the",
        "▁cat",
    }
    config.size = 1
    assert pieces_of(tokenizer, build_vocabularies(tokenizer, [], ["en"], config, tmp_path / "c").ids["en"]) == {"▁the"}


def test_the_script_backend_takes_the_pieces_in_the_languages_letters(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    vocabularies = build_vocabularies(tokenizer, ["ru", "th"], ["en"], VocabularyConfig(backend="script"), tmp_path)
    assert pieces_of(tokenizer, vocabularies.ids["ru"]) == {"кот", "▁кот"}
    assert pieces_of(tokenizer, vocabularies.ids["th"]) == {"แมว", "▁แมว"}
    assert "▁cat" in pieces_of(tokenizer, vocabularies.ids["en"])
    with pytest.raises(UserError, match="letters of 'fr'"):
        build_vocabularies(tokenizer, ["fr"], ["en"], VocabularyConfig(backend="script"), tmp_path)


def test_a_language_that_nothing_serves_is_named_and_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wordfreq")
    vocabularies = build_vocabularies(make_tokenizer(), ["sw", "fr"], ["en"], VocabularyConfig(), tmp_path)
    assert "sw" not in vocabularies.ids
    assert "no vocabulary for sw" in capfd.readouterr().err


def test_wordfreq_missing_is_an_error_with_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language_vocab._wordfreq_languages.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "wordfreq", None)
    with pytest.raises(UserError, match=r"pip install 'xsalt\[wordfreq\]'"):
        build_vocabularies(make_tokenizer(), ["fr"], ["en"], VocabularyConfig(), tmp_path)
    language_vocab._wordfreq_languages.cache_clear()


def test_vocabularies_come_back_from_their_folder_and_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    config = write(tmp_path, en="the the\n", fr="le le\n")
    first = build_vocabularies(tokenizer, ["fr"], ["en"], config, tmp_path / "cache")

    def never(*_: Any) -> Any:
        raise AssertionError("built again")

    monkeypatch.setattr(language_vocab, "_build", never)
    again = build_vocabularies(tokenizer, ["fr"], ["en"], config, tmp_path / "cache")
    assert again.fingerprint == first.fingerprint
    first.save(tmp_path / "saved")
    given = build_vocabularies(tokenizer, ["fr"], ["en"], VocabularyConfig(folder=str(tmp_path / "saved")), tmp_path)
    assert given.fingerprint == first.fingerprint
    assert given.backends == {"en": "corpus", "fr": "corpus"}


def test_changed_text_is_another_vocabulary(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = write(tmp_path, en="the the\n")
    first = build_vocabularies(tokenizer, [], ["en"], config, tmp_path / "cache")
    write(tmp_path, en="cat cat\n")
    assert build_vocabularies(tokenizer, [], ["en"], config, tmp_path / "cache").fingerprint != first.fingerprint


def test_another_tokenizers_vocabularies_are_refused(tmp_path: Path) -> None:
    config = write(tmp_path, en="the the\n")
    build_vocabularies(make_tokenizer(), [], ["en"], config, tmp_path / "cache").save(tmp_path / "saved")
    with pytest.raises(UserError, match="another tokenizer"):
        LanguageVocabularies.load(tmp_path / "saved", make_tokenizer(("▁more",)))


@pytest.mark.parametrize("content", ["", "{}", '{"languages": 3}', "not json"])
def test_a_damaged_file_is_one_error_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "vocabulary.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        LanguageVocabularies.load(tmp_path, make_tokenizer())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VocabularyConfig(backend="corpus"), "needs plain text"),
        (VocabularyConfig(backend="corpus", text="."), "no such file"),
        (VocabularyConfig(text="/no/such"), "no such folder"),
        (VocabularyConfig(folder="/no/such"), "no language vocabularies there"),
    ],
)
def test_bad_settings_are_one_error_line(tmp_path: Path, config: VocabularyConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_vocabularies(make_tokenizer(), ["xx"], ["en"], config, tmp_path)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    config = write(tmp_path, en="the\n")
    (tmp_path / "en.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"en\.txt: not UTF-8"):
        build_vocabularies(make_tokenizer(), [], ["en"], config, tmp_path / "cache")


def test_overlaps_count_shared_ids(tmp_path: Path) -> None:
    config = write(tmp_path, en="the the le le\n", fr="le le\n")
    assert overlaps(build_vocabularies(make_tokenizer(), ["fr"], ["en"], config, tmp_path / "c")) == {("en", "fr"): 1}
