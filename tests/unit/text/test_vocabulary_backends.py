"""What each backend gives, and what several give together, against sets made by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from xsalt.config_distill import VocabularyConfig
from xsalt.errors import UserError
from xsalt.fields import make
from xsalt.text import vocabulary_backends
from xsalt.text.language_vocab import FILE_NAME, LanguageVocabularies, letters_V
from xsalt.text.tokenizer import Tokenizer
from xsalt.text.vocabulary_backends import ORDER, advice, build_vocabularies

WORDS = ["the", "cat", "chat", "le", "rue", "кот", "дом", "แมว", "ラーメン", "ー", "12", "12th"]
CONTINUED = [".", "▁", "s", "кот"]


def make_tokenizer() -> Tokenizer:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{w}" for w in WORDS), *CONTINUED, "<mask>"]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return Tokenizer(backend, "xlm-roberta", "test")


def make_bert() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "chat", "##s", "##ing"]
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return Tokenizer(backend, "bert", "test")


def write(folder: Path, **texts: str) -> VocabularyConfig:
    folder.mkdir(exist_ok=True)
    for language, text in texts.items():
        (folder / f"{language}.txt").write_text(text, encoding="utf-8")
    return VocabularyConfig(text=str(folder), backend=["corpus"], min_count=2)


def write_lists(folder: Path, **lists: str) -> VocabularyConfig:
    write(folder, **lists)
    return VocabularyConfig(files=str(folder), backend=["file"])


def build(tmp_path: Path, config: VocabularyConfig, *languages: str, source: str = "en") -> dict[str, set[str]]:
    tokenizer = make_tokenizer()
    found = build_vocabularies(tokenizer, languages, source.split(), config, tmp_path / "cache")
    return {language: {tokenizer.piece(int(i)) for i in ids} for language, ids in found.ids.items()}


# --- each backend on its own


def test_shared_pieces_go_to_the_language_where_they_are_at_least_as_frequent(tmp_path: Path) -> None:
    config = write(tmp_path / "text", en="the cat the cat le\n" * 3, fr="le chat le chat the\n" * 3)
    found = build(tmp_path, config, "fr")
    assert found == {"fr": {"▁le", "▁chat"}, "en": {"▁the", "▁cat", "▁le"}}


def test_a_piece_must_be_as_frequent_as_in_each_of_several_sources_english_or_not(tmp_path: Path) -> None:
    config = write(tmp_path / "text", ru="кот кот chat chat\n", th="แมว แมว le le\n", fr="chat chat le le rue rue\n")
    assert build(tmp_path, config, "fr", source="ru th")["fr"] == {"▁rue"}
    assert build(tmp_path, config, "fr", source="ru")["fr"] == {"▁le", "▁rue"}


def test_rare_pieces_are_left_out_and_size_keeps_the_most_frequent(tmp_path: Path) -> None:
    config = write(tmp_path / "text", en="the the the cat cat chat\n")
    assert build(tmp_path, config)["en"] == {"▁the", "▁cat"}
    config.size = 1
    assert build(tmp_path, config)["en"] == {"▁the"}


def test_the_script_backend_takes_the_pieces_in_the_languages_letters(tmp_path: Path) -> None:
    found = build(tmp_path, VocabularyConfig(backend=["script"]), "ru", "th", "ja")
    assert found["ja"] == {"▁ラーメン"}
    assert found["ru"] == {"кот", "▁кот", "▁дом"}
    assert found["th"] == {"▁แมว"}
    assert found["en"] == {"▁the", "▁cat", "▁chat", "▁le", "▁rue", "s"}
    with pytest.raises(UserError, match=r"letters of 'fr'.*leave fr out"):
        build(tmp_path, VocabularyConfig(backend=["script"]), "fr")


def test_a_file_lists_words_marked_pieces_and_words_that_are_cut(tmp_path: Path) -> None:
    config = write_lists(tmp_path / "lists", en="the\n", fr="\ufeffchat\n\n▁le\n##кот\r\ncats\n")
    assert build(tmp_path, config, "fr")["fr"] == {"▁chat", "▁le", "кот", "▁cat", "s"}


def test_marks_in_a_file_mean_the_same_for_word_pieces(tmp_path: Path) -> None:
    tokenizer = make_bert()
    config = write_lists(tmp_path / "lists", en="the\n", fr="▁chat\n##ing\nthes\n")
    found = build_vocabularies(tokenizer, ["fr"], ["en"], config, tmp_path / "cache")
    assert {tokenizer.piece(int(i)) for i in found.ids["fr"]} == {"chat", "##ing", "the", "##s"}
    config = write_lists(tmp_path / "lists", fr="▁ing\n")
    with pytest.raises(UserError, match=r"fr\.txt:1: '▁ing' is no piece"):
        build_vocabularies(tokenizer, ["fr"], ["en"], config, tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chat\nle chat\n", r"fr\.txt:2: 'le chat' is more than one word"),
        ("chat\tcat\n", r"fr\.txt:1: .* is more than one word"),
        ("\n▁maison\n", r"fr\.txt:2: '▁maison' is no piece of the tokenizer"),
        ("##chat\n", r"fr\.txt:1: '##chat' is no piece of the tokenizer"),
        ("▁\n", r"no word piece|is no piece"),
        ("12\n.\n", r"fr\.txt: no word piece"),
        ("", r"fr\.txt: the file is empty"),
    ],
)
def test_a_malformed_list_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(tmp_path, write_lists(tmp_path / "lists", en="the\n", fr=text), "fr")
    assert "\n" not in str(error.value)


def test_lines_of_a_list_that_add_nothing_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_lists(tmp_path / "lists", en="the\n", fr="chat\n12\n文\n\u200b\n")
    assert build(tmp_path, config, "fr")["fr"] == {"▁chat"}
    assert "fr.txt: 3 lines have no word piece, so they add nothing; first 2: '12'" in capfd.readouterr().err


# --- several together

TEXT = {"en": "the the the cat cat le chat", "fr": "le le le rue rue chat the кот кот", "ru": "кот кот кот chat chat"}
LISTS = {"en": "cat cat the", "fr": "chat chat chat le the the", "ru": "дом дом rue rue rue кот"}
OWN = {"en": "the", "fr": "the\nдом", "ru": "rue"}
LETTERS = {"en": "latin", "fr": "latin", "ru": "cyrillic"}


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for wordfreq with lists of the three languages."""

    def word_list(language: str) -> Iterator[tuple[str, float]]:
        yield from ((word, n / 1000) for word, n in Counter(LISTS[language].split()).items())

    monkeypatch.setattr(vocabulary_backends, "_word_list", word_list)
    monkeypatch.setattr(vocabulary_backends, "_wordfreq_languages", lambda required: frozenset(LISTS))


def frequencies(language: str, backends: tuple[str, ...]) -> tuple[dict[str, Fraction], set[str]]:
    """Mean relative frequencies, exactly, and the words seen at least twice in one of them."""
    counts = [Counter(s[language].split()) for n, s in (("corpus", TEXT), ("wordfreq", LISTS)) if n in backends]
    mean = {w: sum((Fraction(c[w], c.total()) for c in counts), Fraction()) / len(counts) for w in WORDS if counts}
    return mean, {w for w in WORDS for c in counts if c[w] >= (2 if c == Counter(TEXT[language].split()) else 1)}


def expected(language: str, backends: tuple[str, ...]) -> set[str]:
    mean, kept = frequencies(language, backends)
    source, _ = frequencies("en", backends)
    kept = {w for w in kept if language == "en" or mean[w] >= source[w]}
    if "script" in backends:
        latin = {w for w in WORDS if w.isascii() and w.isalpha()}
        own = latin if LETTERS[language] == "latin" else {"кот", "дом"}
        alone = not mean and (language == "ru" or language == "en")
        kept = (own if alone else kept & own) if mean or alone else kept
    pieces = {f"▁{w}" for w in kept | (set(OWN[language].split()) if "file" in backends else set())}
    if "script" in backends and not mean:
        pieces |= {"en": {"s"}, "ru": {"кот"}}.get(language, set())
    return pieces


@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize("backends", [c for n in range(1, 5) for c in combinations(ORDER, n)], ids="+".join)
@pytest.mark.parametrize("language", ["fr", "ru"])
def test_backends_together_are_means_filtered_by_letters_with_the_users_list_added(
    tmp_path: Path, backends: tuple[str, ...], language: str
) -> None:
    write(tmp_path / "text", **TEXT)
    write(tmp_path / "lists", **OWN)
    config = VocabularyConfig(
        backend=list(reversed(backends)), text=str(tmp_path / "text"), files=str(tmp_path / "lists"), min_count=2
    )
    if backends == ("script",) and language == "fr":
        with pytest.raises(UserError, match="letters of 'fr'"):
            build(tmp_path, config, language)
        return
    found = build(tmp_path, config, language)
    assert found == {"en": expected("en", backends), language: expected(language, backends)}


@pytest.mark.usefixtures("lists")
def test_a_language_that_not_all_backends_have_comes_from_those_that_have_it(tmp_path: Path) -> None:
    write(tmp_path / "text", en=TEXT["en"], sw="rue rue")
    config = VocabularyConfig(backend=["wordfreq", "corpus"], text=str(tmp_path / "text"), min_count=2)
    found = build_vocabularies(make_tokenizer(), ["fr", "sw"], ["en"], config, tmp_path / "cache")
    assert found.backends == {"en": "corpus+wordfreq", "fr": "wordfreq", "sw": "corpus"}
    with pytest.raises(UserError, match=r"wordfreq,corpus: wordfreq has no list for 'xx'; there is no .*xx\.txt"):
        build_vocabularies(make_tokenizer(), ["xx"], ["en"], config, tmp_path / "cache")


@pytest.mark.usefixtures("lists")
def test_auto_takes_the_first_that_has_the_language(tmp_path: Path) -> None:
    write(tmp_path / "text", en=TEXT["en"], fr=TEXT["fr"])
    write(tmp_path / "lists", fr="rue")
    config = VocabularyConfig(text=str(tmp_path / "text"), files=str(tmp_path / "lists"))
    found = build_vocabularies(make_tokenizer(), ["fr", "ru", "th"], ["en"], config, tmp_path / "cache")
    assert found.backends == {"en": "corpus+script", "fr": "file", "ru": "wordfreq+script", "th": "script"}


def test_a_language_of_two_scripts_keeps_the_letters_of_both(tmp_path: Path) -> None:
    config = write(tmp_path / "text", en="the the\n", sr="кот кот rue rue แมว แมว\n")
    config.backend = ["corpus", "script"]
    assert build(tmp_path, config, "sr")["sr"] == {"▁кот", "▁rue"}
    with pytest.raises(UserError, match="letters of 'sr'"):
        build(tmp_path, VocabularyConfig(backend=["script"]), "sr")


# --- what is missing or empty


@pytest.mark.usefixtures("lists")
def test_a_language_that_nothing_serves_is_named_and_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert set(build(tmp_path, VocabularyConfig(), "sw", "fr")) == {"en", "fr"}
    assert "no vocabulary for sw" in capfd.readouterr().err


def test_an_empty_vocabulary_is_named_each_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path / "text", en="the the cat cat\n", fr="the cat cat\n")
    for _ in range(2):  # built, then from the cache
        assert build(tmp_path, config, "fr")["fr"] == {"▁cat"}
        assert "empty" not in capfd.readouterr().err
    config = write(tmp_path / "text", fr="the cat rue\n")
    for _ in range(2):
        assert build(tmp_path, config, "fr")["fr"] == set()
        assert "warning: the vocabulary of fr is empty (corpus)" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["\n \n", "12 12 . .\n"])
def test_text_without_a_word_piece_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"fr\.txt: no word piece"):
        build(tmp_path, write(tmp_path / "text", en="the the\n", fr=text), "fr")


@pytest.mark.usefixtures("lists")
def test_a_source_language_without_frequencies_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, VocabularyConfig(), "fr", source="sw")
    assert "no frequencies for the source language sw" in capfd.readouterr().err
    build(tmp_path, VocabularyConfig(), "fr", source="ru")
    assert "no frequencies" not in capfd.readouterr().err


def test_wordfreq_missing_is_an_error_with_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary_backends._wordfreq_languages.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "wordfreq", None)
    with pytest.raises(UserError, match=r"pip install 'xsalt\[wordfreq\]'"):
        build(tmp_path, VocabularyConfig(), "fr")
    vocabulary_backends._wordfreq_languages.cache_clear()


def test_wordfreqs_english_list_is_never_taken_for_swahili() -> None:
    pytest.importorskip("wordfreq")
    assert "sw" not in vocabulary_backends._wordfreq_languages(True)


@pytest.mark.parametrize(
    ("language", "listed", "written"),
    [
        ("fr", "chat", {"chat": 0.8, "Chat": 0.2}),
        ("el", "τησ", {"της": 0.8, "Της": 0.2}),
        ("tr", "için", {"için": 0.8, "İçin": 0.2}),
        ("it", "ieri", {"ieri": 0.8, "Ieri": 0.2}),
        ("ja", "猫", {"猫": 1.0}),
    ],
)
def test_words_of_a_casefolded_list_are_counted_as_they_are_written(
    monkeypatch: pytest.MonkeyPatch, language: str, listed: str, written: dict[str, float]
) -> None:
    wordfreq = pytest.importorskip("wordfreq")
    monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda *_: {listed: 1.0})
    assert dict(vocabulary_backends._word_list(language)) == written


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VocabularyConfig(backend=["corpus"]), r"corpus needs vocabulary\.text=DIR"),
        (VocabularyConfig(backend=["file"]), r"file needs vocabulary\.files=DIR"),
        (VocabularyConfig(backend=["corpus"], text="."), r"there is no .*\.txt"),
        (VocabularyConfig(text="/no/such"), r"vocabulary\.text=/no/such: no such folder"),
        (VocabularyConfig(files="/no/such"), r"vocabulary\.files=/no/such: no such folder"),
        (VocabularyConfig(folder="/no/such"), "no language vocabularies there"),
    ],
)
def test_bad_settings_are_one_error_line(tmp_path: Path, config: VocabularyConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path, config, "xx")


@pytest.mark.parametrize("backend", [[], ["auto", "corpus"], ["corpus", "auto"]])
def test_auto_stands_alone(backend: list[str]) -> None:
    with pytest.raises(UserError, match="auto alone"):
        make(VocabularyConfig, {"backend": backend}, "vocabulary")


def test_one_backend_needs_no_list_and_an_unknown_one_is_named() -> None:
    assert make(VocabularyConfig, {"backend": "corpus"}, "vocabulary").backend == ["corpus"]
    with pytest.raises(UserError, match="did you mean 'corpus'"):
        make(VocabularyConfig, {"backend": ["corpsu"]}, "vocabulary")


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    config = write(tmp_path / "text", en="the\n")
    (tmp_path / "text" / "en.txt").write_bytes(b"the\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"en\.txt:2: not UTF-8"):
        build(tmp_path, config)


@pytest.mark.parametrize("backends", ["corpus", "corpus+script", "wordfreq", "wordfreq+file", "file", "script"])
def test_advice_names_what_the_backend_reads(backends: str) -> None:
    word = {"corpus": "text", "wordfreq": "vocabulary.text", "file": "list more", "script": "letters"}
    assert word[backends.split("+")[0]] in advice(backends)


# --- kept and found again


def test_vocabularies_come_back_from_the_cache_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    config = write(tmp_path / "text", en="the the\n", fr="le le\n")
    first = build_vocabularies(tokenizer, ["fr"], ["en"], config, tmp_path / "cache")

    def never(*_: Any) -> Any:
        raise AssertionError("built again")

    monkeypatch.setattr(vocabulary_backends, "_build", never)
    again = build_vocabularies(tokenizer, ["fr"], ["en"], config, tmp_path / "cache")
    assert again.fingerprint == first.fingerprint
    first.save(tmp_path / "saved")
    given = build_vocabularies(tokenizer, ["fr"], ["en"], VocabularyConfig(folder=str(tmp_path / "saved")), tmp_path)
    assert given.fingerprint == first.fingerprint
    assert given.backends == {"en": "corpus", "fr": "corpus"}


@pytest.mark.parametrize("name", ["text", "lists"])
def test_a_changed_file_is_another_vocabulary(tmp_path: Path, name: str) -> None:
    write(tmp_path / "text", en="the the\n")
    write(tmp_path / "lists", en="le\n")
    config = VocabularyConfig(
        backend=["corpus", "file"], text=str(tmp_path / "text"), files=str(tmp_path / "lists"), min_count=1
    )
    before = build(tmp_path, config)["en"]
    write(tmp_path / name, en="cat cat\n" if name == "text" else "cat\n")
    assert "▁cat" in build(tmp_path, config)["en"] - before


def test_a_folder_without_a_language_or_for_another_source_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "text", en="the the\n", fr="le le\n")
    build_vocabularies(make_tokenizer(), ["fr"], ["en"], config, tmp_path / "cache").save(tmp_path / "saved")
    folder = VocabularyConfig(folder=str(tmp_path / "saved"))
    build(tmp_path, folder, "fr")
    assert capfd.readouterr().err == ""
    build(tmp_path, folder, "fr", "ru")
    assert "no vocabulary for ru" in capfd.readouterr().err
    build(tmp_path, folder, "en", source="fr")
    assert "was made for source=en" in capfd.readouterr().err


def test_a_damaged_file_in_the_cache_is_named_and_made_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path / "text", en="the the\n")
    made = build(tmp_path, config)
    (path,) = (tmp_path / "cache").rglob(FILE_NAME)
    whole = path.read_bytes()
    path.write_text(path.read_text().replace("[4]", "[5]"))
    assert build(tmp_path, config) == made
    assert "vocabulary.json: damaged or edited" in capfd.readouterr().err
    assert path.read_bytes() == whole


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "cats", ".", "<s>", "</s>", "<mask>", "12s", "unknown"]), min_size=5))
def test_whatever_the_text_no_digit_punctuation_or_special_piece_gets_in(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("given")
    config = write(folder / "text", en="the\n", fr=" ".join(["le", *words]))
    write(folder / "lists", en="the\n", fr="\n".join(["le", *words]))
    config = VocabularyConfig(
        backend=["corpus", "file"], text=config.text, files=str(folder / "lists"), min_count=1, ratio=0.0
    )
    tokenizer = make_tokenizer()
    found: LanguageVocabularies = build_vocabularies(tokenizer, ["fr"], ["en"], config, folder)
    allowed = np.flatnonzero(letters_V(tokenizer))
    assert set(found.ids["fr"].tolist()) <= set(allowed.tolist())
    assert {tokenizer.piece(int(i)) for i in allowed}.isdisjoint({"▁12", "▁12th", ".", "▁", *tokenizer.special_tokens})
