"""Names of components: built-ins load on first use, plug-ins come by decorator or by entry point."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from xsalt.components import BUILT_INS
from xsalt.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry:
    """Maps a name to a component class of one kind (``task``, ``criterion``, ``model``, ``augmenter``)."""

    def __init__(self, kind: str, built_ins: Mapping[str, tuple[str, str]]) -> None:
        self.kind = kind
        self._entries: dict[str, tuple[Any, str, str]] = {  # name -> (target, description, where it comes from)
            name: (target, description, target) for name, (target, description) in built_ins.items()
        }

    def add(self, name: str, target: Any, description: str, where: str) -> None:
        if name in self._entries and self._entries[name][2] != where:
            raise UserError(f"{self.kind} {name!r} is registered twice: by {self._entries[name][2]} and by {where}")
        self._entries[name] = (target, description, where)

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator; the first line of the class's docstring is the description that ``xsalt-list`` shows."""

        def decorate(cls: type[T]) -> type[T]:
            description = (cls.__dict__.get("__doc__") or "").strip().partition("\n")[0]
            self.add(name, cls, description, f"{cls.__module__}:{cls.__qualname__}")
            return cls

        return decorate

    def names(self) -> list[str]:
        return sorted(self._entries)

    def describe(self) -> dict[str, tuple[str, str]]:
        """Name -> (description, where it comes from), sorted by name; imports nothing."""
        return {name: self._entries[name][1:] for name in self.names()}

    def get(self, name: str) -> Any:
        """The class of that name. Raises ``UserError`` with the nearest match if there is none."""
        if name not in self._entries:
            hint = did_you_mean(name, self._entries)
            raise UserError(f"unknown {self.kind} {name!r}: {hint}known: {', '.join(self.names())}")
        target = self._entries[name][0]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            return getattr(importlib.import_module(module), attribute)
        return target.load() if hasattr(target, "load") and not isinstance(target, type) else target


TASKS = Registry("task", BUILT_INS["task"])
CRITERIONS = Registry("criterion", BUILT_INS["criterion"])
MODELS = Registry("model", BUILT_INS["model"])
AUGMENTERS = Registry("augmenter", BUILT_INS["augmenter"])
REGISTRIES = {registry.kind: registry for registry in (TASKS, CRITERIONS, MODELS, AUGMENTERS)}


def load_entry_points() -> None:
    """Adds installed plug-ins: entry-point groups ``xsalt.tasks``, ``.criterions``, ``.models``, ``.augmenters``."""
    for kind, registry in REGISTRIES.items():
        for point in entry_points(group=f"xsalt.{kind}s"):
            registry.add(point.name, point, f"plug-in {point.value}", point.value)
