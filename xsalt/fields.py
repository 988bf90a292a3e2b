"""Dataclasses as configuration: documented fields, checked values, one error line naming the key.

Fields are declared with ``key(default, help, ...)``; a plain dataclass works too, its help taken from the comment or
docstring beside the field. Imports the standard library only.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import math
import os
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from xsalt.errors import UserError, did_you_mean

T = TypeVar("T")


def key(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    path: bool = False,
    hashed: bool = True,
) -> Any:
    """A dataclass field with its documentation and its bounds.

    Args:
        default: the default; a list is copied for each instance.
        help: one line, with the unit.
        path: whether ``~`` is the home folder in it, and an empty text an error.
        hashed: whether another value is another experiment.
    """
    metadata = {
        "help": help,
        "bounds": {"at least": at_least, "above": above, "at most": at_most, "below": below},
        "choices": tuple(choices),
        "path": path,
        "hashed": hashed,
    }
    if isinstance(default, (list, dict, set)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """What ``--help`` shows of a key."""

    name: str
    type: Any
    default: Any
    help: str
    choices: tuple[str, ...]
    hashed: bool

    @property
    def is_list(self) -> bool:
        return any(typing.get_origin(t) in (list, tuple) or t in (list, tuple) for t in _members(self.type))

    @property
    def is_text(self) -> bool:
        return any(t in (str, Path) for t in _members(self.type))

    @property
    def is_dict(self) -> bool:
        return any(typing.get_origin(t) in _MAPPINGS or t in _MAPPINGS for t in _members(self.type))


_MAPPINGS = (dict, Mapping)
_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    type(None): "null",
}


def _members(declared: Any) -> tuple[Any, ...]:
    union = typing.get_origin(declared) in (typing.Union, types.UnionType)
    return typing.get_args(declared) if union else (declared,)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def document(cls: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a configuration dataclass, nested ones with dots, in the order of declaration."""
    hints, beside = typing.get_type_hints(cls), _help_beside_fields(cls)
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from document(typing.cast(type, hints[field.name]), f"{name}.")
            continue
        text = field.metadata.get("help") or beside.get(field.name, "")
        choices = tuple(field.metadata.get("choices", ()))
        yield Key(name, hints[field.name], plain(_default(field)), text, choices, field.metadata.get("hashed", True))


def _help_beside_fields(cls: type) -> dict[str, str]:
    """Field -> its comment on the same line, or the docstring below it; nothing where the source can't be read."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(base))
            body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        except (OSError, TypeError, SyntaxError):
            continue
        lines = source.splitlines()
        for node, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            comment = (
                lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip() if node.end_lineno else ""
            )
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                comment = comment or inspect.cleandoc(str(following.value.value)).replace("\n", " ")
            found[node.target.id] = comment
    return found


def plain(value: Any) -> Any:
    """Dataclasses, tuples, paths and enumerations as what YAML and JSON can write."""
    if value is dataclasses.MISSING:
        return "???"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def defaults(cls: type) -> dict[str, Any]:
    """A configuration dataclass's defaults as a plain mapping; ``???`` stands where a value must be given."""
    hints = typing.get_type_hints(cls)
    return {
        f.name: defaults(hints[f.name]) if dataclasses.is_dataclass(hints[f.name]) else plain(_default(f))
        for f in dataclasses.fields(cls)
    }


def make(cls: type[T], node: Mapping[str, Any], where: str) -> T:
    """An instance of a configuration dataclass from plain values; ``where`` is the dotted name of the node.

    Raises:
        UserError: for a key that the class lacks, a missing one, a value of the wrong type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls)) if field.init}
    hints, prefix = typing.get_type_hints(cls), f"{where}." if where else ""
    if not isinstance(node, Mapping):
        raise UserError(f"{where}: {_show(node)} stands where keys are needed: {', '.join(fields) or 'it has none'}")
    for name in node:
        if name not in fields:
            known = f"known: {', '.join(fields)}" if fields else "it has no keys"
            raise UserError(f"unknown key {prefix + str(name)!r}: {did_you_mean(str(name), fields)}{known}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        full, declared = prefix + name, hints[name]
        if name not in node or _is_missing(node[name]):
            if _default(field) is dataclasses.MISSING:
                raise UserError(f"{full} must be given: {full}=...")
        elif dataclasses.is_dataclass(declared):
            values[name] = make(typing.cast(type, declared), node[name], full)
        else:
            values[name] = _bounded(_convert(node[name], declared, full), field, full)
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error


def _is_missing(value: Any) -> bool:
    return isinstance(value, str) and value == "???"


def _bounded(value: Any, field: dataclasses.Field[Any], full: str) -> Any:
    if value is None:
        return value
    for word, bound in field.metadata.get("bounds", {}).items():
        if bound is None:
            continue
        if not {"at least": value >= bound, "above": value > bound, "at most": value <= bound, "below": value < bound}[
            word
        ]:
            raise UserError(f"{full}={value}: must be {word} {bound}")
    check_value(full, value, field.metadata.get("choices", ()))
    if field.metadata.get("path"):
        if "" in ([value] if isinstance(value, str) else value):
            raise UserError(f"{full} is empty: write {full}=PATH, or leave it out")
        return os.path.expanduser(value) if isinstance(value, str) else [os.path.expanduser(v) for v in value]
    return value


def check_value(full: str, value: str | list[str], choices: Collection[str]) -> None:
    """Raises ``UserError`` unless the text, or each text of the list, is one of the choices (none: anything is)."""
    for one in [value] if not isinstance(value, list) else value:
        if choices and one not in choices:
            raise UserError(f"{full}={one}: {did_you_mean(str(one), choices)}known: {', '.join(choices)}")


def _show(value: Any) -> str:
    return "null" if value is None else repr(plain(value))


def _words(declared: Any) -> str:
    origin, args = typing.get_origin(declared), typing.get_args(declared)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (list, tuple, Sequence):
        inner = _words(args[0]) if args else "values"
        return f"a list, each {inner}"
    if isinstance(declared, type) and issubclass(declared, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in declared)
    return _WORDS.get(declared) or ("a mapping" if origin in _MAPPINGS else str(declared))


def _convert(value: Any, declared: Any, full: str) -> Any:
    """The value in the declared type, widened where nothing is lost: 3 as a number, 1e3 as an integer, fr as [fr]."""
    for member in _members(declared):
        done, converted = _try(value, member, full)
        if done:
            return converted
    wanted = " or ".join(_words(member) for member in _members(declared))
    raise UserError(f"{full}={_show(value)}: wrong type, must be {wanted}")


def _try(value: Any, declared: Any, full: str) -> tuple[bool, Any]:
    origin, args = typing.get_origin(declared), typing.get_args(declared)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if declared is Any:
        return True, value
    if declared in (type(None), None):
        return value is None, None
    if origin is typing.Literal:
        return value in args, value
    if isinstance(declared, type) and issubclass(declared, enum.Enum):
        return next(((True, member) for member in declared if value in (member, member.value)), (False, None))
    if declared is bool:
        return isinstance(value, bool), value
    if declared is int:
        whole = number and math.isfinite(value) and value == int(value)
        return whole, int(value) if whole else None
    if declared is float:
        return number and math.isfinite(value), float(value) if number else None
    if declared in (str, Path):
        return isinstance(value, str) or number, declared(str(value))
    if origin in (list, tuple, Sequence) or declared in (list, tuple):
        return _try_list(value, origin or declared, args, full)
    if origin in _MAPPINGS or declared in _MAPPINGS:
        kind = args[1] if args else Any
        return isinstance(value, Mapping), {
            str(k): _convert(v, kind, f"{full}.{k}") for k, v in (value.items() if isinstance(value, Mapping) else ())
        }
    return isinstance(declared, type) and isinstance(value, declared), value


def _try_list(value: Any, kind: Any, args: tuple[Any, ...], full: str) -> tuple[bool, Any]:
    if value is None or isinstance(value, Mapping):
        return False, None
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(items) != len(args):
            raise UserError(f"{full}={_show(value)}: wrong type, must be {len(args)} values")
        return True, tuple(
            _convert(item, t, f"{full}[{i}]") for i, (item, t) in enumerate(zip(items, args, strict=True))
        )
    inner = args[0] if args else Any
    converted = [_convert(item, inner, f"{full}[{i}]") for i, item in enumerate(items)]
    return True, tuple(converted) if kind is tuple else converted
