"""``xsalt-list``: what is registered, plug-ins included."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

from xsalt.errors import UserError
from xsalt.registry import REGISTRIES
from xsalt_cli.guard import guard
from xsalt_cli.plugins import load_user_dir

PROG = "xsalt-list"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    return guard(PROG, lambda: _list(argv))


def _list(argv: Sequence[str] | None) -> None:
    parser = _Parser(
        prog=PROG,
        allow_abbrev=False,
        usage="example: xsalt-list --user-dir my_tasks\n\n%(prog)s [KIND ...] [--user-dir DIR] [--kernels] [--json]",
        description="Tasks, criterions, models and augmenters by name, installed plug-ins included.",
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"only these kinds: {', '.join(REGISTRIES)}")
    parser.add_argument("--user-dir", metavar="DIR", action="append", default=[], help="runs every Python file in DIR")
    parser.add_argument("--json", action="store_true", help="for programs: kind, name, description, where, problem")
    parser.add_argument("--kernels", action="store_true", help="which kernels are used on which device (loads torch)")
    flags = parser.parse_args(argv)
    if flags.kernels:
        from xsalt.kernels import describe

        found = describe()
        print(json.dumps(found, indent=2) if flags.json else "\n".join(f"{k:<5} {v}" for k, v in found.items()))
        return
    for kind in flags.kinds:
        if kind not in REGISTRIES:
            raise UserError(f"unknown kind {kind!r}: known: {', '.join(REGISTRIES)}")
    problems = _add_plugins()
    for folder in flags.user_dir:
        load_user_dir(Path(folder))
    rows = [
        {
            "kind": kind,
            "name": name,
            "description": description,
            "where": where,
            "problem": problems.pop((kind, where), None),
        }
        for kind, registry in REGISTRIES.items()
        for name, (description, where) in registry.describe().items()
    ]
    for (kind, where), problem in problems.items():
        rows.append({"kind": kind, "name": None, "description": "", "where": where, "problem": problem})
    rows = [row for row in rows if not flags.kinds or row["kind"] in flags.kinds]
    print(json.dumps(rows, indent=2, ensure_ascii=False) if flags.json else _text(rows))


def _add_plugins() -> dict[tuple[str, str], str]:
    """Registers the entry points one by one, without importing them. Gives what is wrong: (kind, where) -> reason."""
    problems: dict[tuple[str, str], str] = {}
    for kind, registry in REGISTRIES.items():
        for point in entry_points(group=f"xsalt.{kind}s"):
            top = point.module.partition(".")[0]
            try:
                if importlib.util.find_spec(top) is None:
                    problems[kind, point.value] = f"no module {top!r}: reinstall the plug-in"
                registry.add(point.name, point, f"plug-in {point.value}", point.value)
            except (UserError, ValueError) as error:
                problems[kind, point.value] = str(error)
    return problems


def _text(rows: Sequence[dict[str, str | None]]) -> str:
    lines, width = [], max((len(row["name"] or "") for row in rows), default=0)
    for kind in REGISTRIES:
        of_kind = [row for row in rows if row["kind"] == kind]
        lines += [f"{kind}s"] if of_kind else []
        for row in of_kind:
            text = row["description"] or f"(no description) {row['where']}"
            if row["problem"]:
                text = f"broken: {row['problem']}"
            lines.append(f"  {row['name'] or '?':<{width}}  {text}")
    return "\n".join(lines)
