"""``--help``: an example first, then the keys, made from the dataclasses that check them."""

from __future__ import annotations

import argparse
import shutil
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xsalt.config import TrainConfig, component_class
from xsalt.fields import Key, document
from xsalt.registry import REGISTRIES

if TYPE_CHECKING:
    from xsalt_cli.front import Script

FLAGS = {
    "task": "what to train on",
    "model": "architecture (default: auto, the checkpoint's)",
    "augmenter": "what changes the batches, in this order (default: none)",
    "criterion": "what is minimised (default: cross_entropy)",
    "user_dir": "import your own components: runs every Python file in DIR",
    "cfg": "print the resolved configuration as YAML and stop",
    "multirun": "run every combination of comma-separated values; lists are then written [a,b]",
    "help": "this help; with --task, --augmenter and the like the components' keys too",
}


def show_help(script: Script, parser: argparse.ArgumentParser, chosen: Mapping[str, Sequence[str]]) -> None:
    """Prints the help. Imports only the components that were named on the command line."""
    positional = "".join(f" {name}" for name in script.positional)
    print(
        f"example: {script.example}\n\n{script.about}\n\n"
        f"usage: {script.prog}{positional} [flags] [key=value ...]\n\nflags:"
    )
    rows = []
    for action in parser._actions:
        known = ", ".join(REGISTRIES[action.dest].names()) if action.dest in REGISTRIES else ""
        value = f" {'job' if action.dest == 'cfg' else action.metavar}" if action.nargs != 0 else ""
        rows.append((action.option_strings[0] + value, FLAGS[action.dest] + (f": {known}" if known else "")))
    _table(rows)
    if script.extra:
        print(f"\nkeys of {script.prog}:")
        _table(_rows(document(script.extra)))
    print("\nkeys (key=value):")
    _table(_rows(document(TrainConfig)))
    for kind, names in chosen.items():
        for name in names:
            if name != "none":
                prefix = "model" if kind == "model" else f"{kind}.{name}"
                print(f"\n{kind} {name}: {REGISTRIES[kind].describe().get(name, ('', ''))[0]}")
                entries = document(component_class(REGISTRIES[kind], name).Config, f"{prefix}.")
                _table(_rows(entry for entry in entries if entry.name != "model.name") or [("(no keys)", "")])


def _rows(entries: Iterable[Key]) -> list[tuple[str, str]]:
    return [(f"{entry.name}={_shown(entry.default)}", _about(entry)) for entry in entries]


def _about(entry: Key) -> str:
    choices = (
        f" ({', '.join(entry.choices)})" if entry.choices and not all(c in entry.help for c in entry.choices) else ""
    )
    return f"{_type(entry.type)}: {entry.help}{choices}" if entry.help else _type(entry.type)


def _type(declared: Any) -> str:
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return " or ".join(_type(member) for member in typing.get_args(declared))
    if declared is type(None):
        return "null"
    return (
        getattr(declared, "__name__", str(declared))
        if not typing.get_args(declared)
        else str(declared).replace("typing.", "")
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _table(rows: Sequence[tuple[str, str]]) -> None:
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    for left, right in rows:
        wrapped = textwrap.wrap(right, width - 32) or [""]
        head = f"  {left:<28}  "
        if len(left) > 28:
            print(f"  {left}")
            head = " " * 32
        print(head + wrapped[0])
        for line in wrapped[1:]:
            print(" " * 32 + line)
