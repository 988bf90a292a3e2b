from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from xsalt import config as config_module
from xsalt.config import (
    Composed,
    TrainConfig,
    build,
    cache_dir,
    changed_keys,
    config_hash,
    default_run,
    read_yaml,
    to_yaml,
    train_keys,
)
from xsalt.errors import UserError
from xsalt.fields import defaults, document, key, make, plain
from xsalt.registry import REGISTRIES, Registry


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Inner:
    size: int = key(3, "pieces", at_least=1)


@dataclass
class Wide:
    needed: str
    number: float = 0.5  # share of all
    count: int | None = None
    """How many."""
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    colour: Colour = Colour.RED
    where: Path = Path("x")
    words: list[str] = field(default_factory=list)
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[int, ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    anything: Any = None
    inner: Inner = field(default_factory=Inner)


@dataclass
class ToyConfig:
    rate: float = key(0.5, "share of the tokens", at_least=0.0, at_most=1.0)


class Toy:
    """A toy."""

    Config = ToyConfig

    def __init__(self, config: ToyConfig, *args: object) -> None:
        self.config, self.args = config, args


@dataclass
class ToyModelConfig:
    name: str = "auto"
    layers: int = 2


class ToyModel(Toy):
    Config = ToyModelConfig


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_entries", registry._entries.copy())
        registry.add("toy", ToyModel if registry.kind == "model" else Toy, "a toy", f"toy:{registry.kind}")
        registry.add("toy2", Toy, "a toy", f"toy2:{registry.kind}")


def mapping(**changes: object) -> dict[str, Any]:
    return {"task": {"toy": {}}, "model": {"name": "toy"}, "criterion": {"toy": {}}, "augmenter": {}, **changes}


def test_defaults_survive_making() -> None:
    assert make(TrainConfig, defaults(TrainConfig), "") == TrainConfig()


def test_every_key_of_a_run_is_documented() -> None:
    assert [name for name, entry in train_keys().items() if not entry.help] == []


@pytest.mark.parametrize(
    ("name", "given", "made"),
    [
        ("number", 1, 1.0),
        ("count", 1e3, 1000),
        ("count", None, None),
        ("words", "fr", ["fr"]),
        ("where", "a/b", Path("a/b")),
        ("colour", "red", Colour.RED),
        ("pair", [3, 4], (3, 4.0)),
        ("many", [1, 2, 3], (1, 2, 3)),
        ("table", {"a": 1}, {"a": 1}),
        ("needed", 2024, "2024"),
        ("mode", "b", "b"),
        ("anything", {"x": [1]}, {"x": [1]}),
        ("inner", {"size": 4}, Inner(4)),
    ],
)
def test_values_are_widened_where_nothing_is_lost(name: str, given: object, made: object) -> None:
    value = getattr(make(Wide, {"needed": "x", name: given}, "toy"), name)
    assert value == made
    assert type(value) is type(made)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("number", "x", "a number"),
        ("number", float("nan"), "a number"),
        ("number", True, "a number"),
        ("count", 1.5, "an integer or null"),
        ("flag", 1, "true or false"),
        ("mode", "c", "one of a, b"),
        ("colour", "blue", "one of red"),
        ("needed", None, "a text"),
        ("pair", [1], "2 values"),
        ("table", [1], "a mapping"),
        ("words", [["a"]], "a text"),
        ("words", None, "a list, each a text"),
    ],
)
def test_a_wrong_type_names_key_and_type(name: str, given: object, words: str) -> None:
    with pytest.raises(UserError, match=rf"^toy\.{name}.*wrong type, must be .*{words}"):
        make(Wide, {"needed": "x", name: given}, "toy")


def test_a_missing_value_and_an_unknown_key_are_named() -> None:
    with pytest.raises(UserError, match=r"^toy\.needed must be given"):
        make(Wide, {}, "toy")
    with pytest.raises(UserError, match=r"^unknown key 'toy\.nubmer': did you mean 'number'\?"):
        make(Wide, {"needed": "x", "nubmer": 1}, "toy")
    with pytest.raises(UserError, match=r"^unknown key 'toy\.inner\.sice': did you mean 'size'\?"):
        make(Wide, {"needed": "x", "inner": {"sice": 1}}, "toy")
    with pytest.raises(UserError, match=r"^toy\.inner: 3 stands where keys are needed: size"):
        make(Wide, {"needed": "x", "inner": 3}, "toy")


def test_a_check_of_the_dataclass_itself_is_a_users_error() -> None:
    @dataclass
    class Checked:
        low: int = 0

        def __post_init__(self) -> None:
            if self.low > 1:
                raise ValueError("low must be small")

    with pytest.raises(UserError, match=r"^toy: low must be small"):
        make(Checked, {"low": 2}, "toy")


def test_help_comes_from_the_field_the_comment_or_the_docstring() -> None:
    helps = {entry.name: entry.help for entry in document(Wide)}
    assert helps["number"] == "share of all"
    assert helps["count"] == "How many."
    assert helps["inner.size"] == "pieces"
    assert helps["flag"] == ""


def test_the_home_folder_is_filled_in_for_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    made = make(TrainConfig, {"run": "~/runs", "data": {"train": ["~/x.tsv", "y.tsv"]}}, "")
    assert made.run == "/home/someone/runs"
    assert made.data.train == ["/home/someone/x.tsv", "y.tsv"]


def test_two_epochs_unless_updates_are_counted() -> None:
    assert TrainConfig().epoch_limit == 2
    assert TrainConfig(max_updates=5).epoch_limit is None
    assert TrainConfig(max_updates=5, epochs=3).epoch_limit == 3


def test_the_resolved_configuration_is_complete_and_reads_back() -> None:
    composed = Composed.of(mapping(augmenter={"toy2": {"rate": 1}, "toy": {}}, seed=3))
    assert composed.augmenters == ("toy2", "toy")
    assert composed.resolved["augmenter"] == {"toy2": {"rate": 1.0}, "toy": {"rate": 0.5}}
    assert composed.resolved["optim"]["warmup"] == 0.06
    assert Composed.of(composed.resolved) == composed


def test_yaml_reads_back(tmp_path: Path) -> None:
    composed = Composed.of(mapping(languages=["no", "fr"], run="données: é", seed=3))
    (tmp_path / "config.yaml").write_text(to_yaml(composed.resolved), encoding="utf-8")
    assert Composed.of(read_yaml(tmp_path / "config.yaml")) == composed


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [", b"- 1\n", b""])
def test_a_damaged_config_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_yaml(file)
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")


def test_the_hash_names_the_experiment_not_the_place_or_the_machine() -> None:
    base = Composed.of(mapping())
    for same in (
        {"run": "x"},
        {"resume": "never"},
        {"dry_run": True},
        {"device": "cpu"},
        {"log_every": 5},
        {"profile": True},
    ):
        assert Composed.of(mapping(**same)).hash == base.hash, same
    others = [
        mapping(seed=2),
        mapping(dropout=0.0),
        mapping(augmenter={"toy": {}}),
        mapping(augmenter={"toy": {"rate": 1}}),
        mapping(augmenter={"toy": {}, "toy2": {}}),
        mapping(augmenter={"toy2": {}, "toy": {}}),
        mapping(data={"max_train": 5}),
        mapping(distributed={"compress": "bf16"}),
    ]
    assert len({base.hash} | {Composed.of(other).hash for other in others}) == len(others) + 1


def test_the_hash_does_not_depend_on_how_a_value_is_written_or_ordered() -> None:
    a = Composed.of(mapping(optim={"lr": 1, "clip": 1.0}, seed=1))
    b = Composed.of(mapping(seed=1, optim={"clip": 1, "lr": 1.0}))
    assert a.hash == b.hash == config_hash(a.resolved)


def test_the_default_run_folder_is_named_by_its_configuration() -> None:
    plain_run = Composed.of(mapping())
    assert default_run(plain_run) == Path("runs") / f"toy-none-s1-{plain_run.hash[:8]}"
    both = Composed.of(mapping(augmenter={"toy": {}, "toy2": {}}, seed=4))
    assert default_run(both).name == f"toy-toy+toy2-s4-{both.hash[:8]}"
    assert both.with_changes(run="here").run == Path("here")
    assert both.with_changes(run="here").resolved["run"] == "here"


def test_changed_keys_are_named_but_not_those_that_change_no_result() -> None:
    old = Composed.of(mapping(run="a")).resolved
    new = Composed.of(mapping(run="b", seed=2, optim={"lr": 0.1}, augmenter={"toy": {}})).resolved
    assert changed_keys(old, new) == ["augmenter", "augmenter.toy.rate", "optim.lr", "seed"]
    assert changed_keys(old, old) == []


def test_build_constructs_the_component_with_its_checked_configuration() -> None:
    registry = Registry("augmenter", {})
    registry.register("toy")(Toy)
    made = build(registry, "toy", {"rate": 1}, "needs")
    assert made.config == ToyConfig(1.0)
    assert made.args == ("needs",)
    with pytest.raises(UserError, match=r"unknown key 'augmenter\.toy\.ratio': did you mean 'rate'\?"):
        build(registry, "toy", {"ratio": 1})
    with pytest.raises(UserError, match=r"augmenter\.toy\.rate=1\.5: must be at most 1"):
        build(registry, "toy", {"rate": 1.5})


def test_a_model_has_its_name_among_its_keys() -> None:
    composed = Composed.of(mapping(model={"name": "toy", "layers": 3}))
    assert composed.build("model", "toy").config == ToyModelConfig("toy", 3)
    assert composed.resolved["model"] == {"name": "toy", "layers": 3}


@pytest.mark.parametrize("task", [{}, None, {"toy": {}, "toy2": {}}])
def test_a_configuration_has_one_task(task: object) -> None:
    with pytest.raises(UserError, match="one task"):
        Composed.of(mapping(task=task))


def test_caches_lie_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XSALT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("XSALT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(config_module.sys, "platform", "linux")
    assert cache_dir() == tmp_path / "xdg" / "xsalt"


def test_plain_values_can_be_written_anywhere() -> None:
    assert plain(Wide("x"))["colour"] == "red"
    assert plain(Wide("x"))["where"] == "x"
    assert plain((1, Path("a"))) == [1, "a"]
