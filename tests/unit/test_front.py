from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from xsalt.errors import UserError
from xsalt.fields import Key, key
from xsalt.registry import REGISTRIES
from xsalt_cli.front import Script, compose, quoted, spell, split_list
from xsalt_cli.plugins import load_user_dir


@dataclass
class NoKeys:
    pass


@dataclass
class ToyConfig:
    rate: float = key(0.5, "share")


class Plain:
    Config = NoKeys


class Toy:
    Config = ToyConfig


@dataclass
class Own:
    corpus: str = key("train", "what is scored")
    sample: int = key(0, "sentences shown", at_least=0)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_entries", registry._entries.copy())
        registry.add("toy", Plain if registry.kind in ("task", "model") else Toy, "", "toy")


TOYS = ["--task", "toy", "--model", "toy", "--criterion", "toy"]
SCRIPT = Script("xsalt-toy", "", "xsalt-toy RUN")


def text_key(declared: Any = str, name: str = "k") -> Key:
    return Key(name, declared, None, "", (), True)


# Surrogates can't stand on a command line, and Hydra takes the interpolation ${...} for itself.
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda text: "${" not in text))
def test_a_quoted_text_reaches_hydra_unchanged(text: str) -> None:
    assert OverridesParser.create().parse_override(f"k={quoted(text)}").value() == text


@given(st.from_regex(r"/[\w=(),~ $'\"#é-]+", fullmatch=True))
def test_a_path_reaches_hydra_unchanged(path: str) -> None:
    value = OverridesParser.create().parse_override(spell("k", path, text_key())).value()
    assert str(value).strip() == path.strip()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("[a,b]", ["a", "b"]),
        ("[a],[a,b]", ["[a]", "[a,b]"]),
        ("[[a],[b]]", ["[a]", "[b]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("", []),
        ("[]", []),
        (" a , b ", ["a", "b"]),
    ],
)
def test_lists_are_split_outside_of_quotes_and_brackets(text: str, parts: list[str]) -> None:
    assert split_list(text) == parts


def test_commas_make_lists_in_a_single_run_and_sweeps_in_a_multirun() -> None:
    assert spell("languages", "fr,de", text_key(list[str], "languages")) == "languages=[fr,de]"
    assert spell("languages", "fr", text_key(list[str] | None, "languages")) == "languages=[fr]"
    assert spell("languages", "null", text_key(list[str] | None, "languages")) == "languages=null"
    assert spell("languages", "fr,de", text_key(list[str], "languages"), multirun=True) == "languages=fr,de"
    with pytest.raises(UserError, match="--multirun"):
        spell("seed", "1,2", text_key(int, "seed"))


def test_positional_arguments_stand_in_front_of_the_keys() -> None:
    script = Script("xsalt-toy", "", "xsalt-toy RUN", positional=("RUN",))
    composed = compose(script, ["runs/a=b", *TOYS, "seed=3"])
    assert composed.positional == {"RUN": "runs/a=b"}
    assert composed.train.seed == 3
    with pytest.raises(UserError, match="RUN is missing"):
        compose(script, TOYS)


def test_a_base_configuration_gives_names_and_values_that_the_command_line_changes() -> None:
    stored = compose(
        SCRIPT, [*TOYS, "--augmenter", "toy", "augmenter.toy.rate=0.75", "seed=5", "languages=fr"]
    ).resolved

    def base(positional: Mapping[str, str]) -> Mapping[str, Any]:
        assert positional == {"RUN": "here"}
        return stored

    script = Script("xsalt-toy", "", "", positional=("RUN",), base=base)
    composed = compose(script, ["here", "languages=de"])
    assert composed.augmenters == ("toy",)
    assert composed.resolved == {**stored, "languages": ["de"]}


def test_a_script_has_keys_of_its_own_that_the_hash_does_not_see() -> None:
    script = Script("xsalt-toy", "", "", extra=Own)
    composed = compose(script, [*TOYS, "corpus=dev", "sample=3"])
    assert composed.extra == Own("dev", 3)
    assert composed.hash == compose(SCRIPT, TOYS).hash
    with pytest.raises(UserError, match="sample=-1: must be at least 0"):
        compose(script, [*TOYS, "sample=-1"])
    with pytest.raises(UserError, match="unknown key 'sampel': did you mean 'sample'"):
        compose(script, [*TOYS, "sampel=1"])


def test_a_script_may_have_a_default_task() -> None:
    assert compose(Script("xsalt-toy", "", "", task="toy"), TOYS[2:]).task == "toy"


def test_a_whole_mapping_on_the_command_line_replaces_the_one_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Weighted:
        weights: dict[str, float] = key({}, "weights")

    class Toy2(Toy):
        Config = Weighted

    REGISTRIES["augmenter"].add("weighted", Toy2, "", "weighted")
    words = [*TOYS, "--augmenter", "weighted"]
    for value in ("{de: 2, fr: 1}", "{de:2,fr:1}"):
        composed = compose(SCRIPT, [*words, f"augmenter.weighted.weights={value}"])
        assert composed.node("augmenter", "weighted")["weights"] == {"de": 2.0, "fr": 1.0}
    composed = compose(SCRIPT, [*words, "augmenter.weighted.weights.sw=3"])
    assert composed.node("augmenter", "weighted")["weights"] == {"sw": 3.0}
    script = replace(SCRIPT, positional=("RUN",), base=lambda positional: composed.resolved)
    again = compose(script, ["RUN", "augmenter.weighted.weights={de: 2}"])
    assert again.node("augmenter", "weighted")["weights"] == {"de": 2.0}
    with pytest.raises(UserError, match="weights"):
        compose(SCRIPT, [*words, "augmenter.weighted.weights={de: many}"])


@pytest.mark.parametrize("kind", ["criterion", "augmenter"])
def test_a_component_named_twice_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=f"{kind}=toy,toy: toy stands twice"):
        compose(SCRIPT, [*TOYS[:4], "--criterion", "toy", f"--{kind}", "toy,toy"])


def test_flags_win_over_overrides_and_later_over_earlier() -> None:
    composed = compose(SCRIPT, [*TOYS, "task=nothing", "seed=1", "seed=2"])
    assert composed.task == "toy"
    assert composed.train.seed == 2


def test_modules_of_a_user_dir_may_import_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "xs_helper.py").write_text("NAME = 'helped'\n", encoding="utf-8")
    (tmp_path / "xs_package").mkdir()
    (tmp_path / "xs_package" / "__init__.py").write_text(
        "from xs_helper import NAME\nfrom xsalt.registry import TASKS\n"
        "@TASKS.register(NAME)\nclass T:\n    'A task.'\n",
        encoding="utf-8",
    )
    load_user_dir(tmp_path)
    load_user_dir(tmp_path)  # a sweep's jobs load it again
    assert REGISTRIES["task"].describe()["helped"][0] == "A task."
