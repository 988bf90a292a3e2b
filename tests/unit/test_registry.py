from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from xsalt.components import BUILT_INS
from xsalt.errors import UserError, did_you_mean
from xsalt.registry import Registry

TABLE = {"xnli": ("collections:OrderedDict", "inference"), "mlm": ("collections:Counter", "plain text")}


@pytest.fixture
def registry() -> Registry:
    return Registry("task", TABLE)


def test_names_are_sorted_and_described_without_importing() -> None:
    code = (
        "import sys; from xsalt.registry import REGISTRIES; [r.describe() for r in REGISTRIES.values()];"
        "print(*[m for m in sys.modules if m.startswith(('xsalt.tasks', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_builtin_loads_on_first_use(registry: Registry) -> None:
    from collections import OrderedDict

    assert registry.get("xnli") is OrderedDict
    assert registry.names() == ["mlm", "xnli"]
    assert registry.describe()["mlm"] == ("plain text", "collections:Counter")


def test_an_unknown_name_lists_the_known_and_the_nearest(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"^unknown task 'xlni': did you mean 'xnli'\? known: mlm, xnli$"):
        registry.get("xlni")
    with pytest.raises(UserError, match=r"^unknown task 'zzz': known: mlm, xnli$"):
        registry.get("zzz")


def test_a_registered_class_is_described_by_its_first_docstring_line(registry: Registry) -> None:
    @registry.register("mine")
    class Mine:
        """One line.

        More.
        """

    assert registry.get("mine") is Mine
    assert registry.describe()["mine"][0] == "One line."


def test_a_duplicate_names_both_places(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"task 'xnli' is registered twice: by collections:OrderedDict and by .*Thief"):

        @registry.register("xnli")
        class Thief:
            pass


def test_registering_the_same_class_again_is_no_duplicate(registry: Registry) -> None:
    class Mine:
        pass

    registry.register("mine")(Mine)
    registry.register("mine")(Mine)
    assert registry.get("mine") is Mine


def test_an_entry_point_loads_on_first_use(registry: Registry) -> None:
    class Point:
        loaded = 0

        def load(self) -> type:
            self.loaded += 1
            return dict

    point = Point()
    registry.add("late", point, "plug-in", "somewhere:dict")
    assert point.loaded == 0
    assert registry.get("late") is dict


def test_nothing_near_gives_no_hint() -> None:
    assert did_you_mean("abc", ["xyz"]) == ""


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, table in BUILT_INS.items() for name in table],
    ids=lambda value: str(value),
)
def test_every_builtin_exists_with_a_documented_configuration(kind: str, name: str) -> None:
    from xsalt.fields import document

    module, _, attribute = BUILT_INS[kind][name][0].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    assert [key.name for key in document(cls.Config) if not key.help and key.name != "name"] == []
