"""The thin front of Hydra: one configuration, two spellings.

``--task xnli --augmenter codeswitch,mixup`` is another spelling of ``task=xnli 'augmenter=[codeswitch,mixup]'``.
Here flags become overrides, keys are checked by name, the chosen components' dataclasses become Hydra's nodes, and
Hydra composes; ``xsalt.config`` checks the result.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from xsalt.config import Composed, TrainConfig, component_class, run_name, to_yaml, train_keys, unknown_key
from xsalt.errors import UserError, did_you_mean
from xsalt.fields import Key, defaults, document, make
from xsalt.registry import REGISTRIES
from xsalt_cli.guard import guard
from xsalt_cli.plugins import load_plugins

__all__ = ["Script", "compose", "guard", "launch"]

KINDS = tuple(REGISTRIES)
LISTED = ("augmenter", "criterion")
_ASSIGNMENT = re.compile(r"[~+]{0,2}[\w./@-]+=")
_HYDRA = re.compile(r"hydra(/(launcher|sweeper)|\.(launcher|sweeper)\.[\w.]+)=")
"""What can be said of Hydra itself; its other keys name classes that it would call."""

Base = Callable[[Mapping[str, str]], Mapping[str, Any]]


@dataclass(frozen=True)
class Script:
    """What a script tells the front about itself.

    Attributes:
        prog, about, example: its name, one sentence, and a command line to copy.
        positional: names of its positional arguments, all needed, in front of the keys.
        extra: a dataclass with its own keys.
        base: from the positional arguments, a configuration that the command line changes (``xsalt-eval`` reads
            the run's); without it the defaults.
        task: the task where none is given; None means that the user must choose.
    """

    prog: str
    about: str
    example: str
    positional: tuple[str, ...] = ()
    extra: type | None = None
    base: Base | None = None
    task: str | None = None


@dataclass
class Request:
    """The command line in its parts: names by kind as the user wrote them, and the other overrides."""

    flags: argparse.Namespace
    positional: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    hydra: list[str] = field(default_factory=list)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser(script: Script) -> argparse.ArgumentParser:
    """The flags. Everything else on the command line is ``key=value``."""
    made = _Parser(prog=script.prog, allow_abbrev=False, add_help=False)
    for kind in KINDS:
        made.add_argument(f"--{kind}", metavar="NAME,NAME" if kind in LISTED else "NAME")
    made.add_argument("--user-dir", metavar="DIR", action="append", default=[])
    made.add_argument("--cfg", choices=["job"])
    made.add_argument("--multirun", "-m", action="store_true")
    made.add_argument("--help", "-h", action="store_true")
    return made


def launch(script: Script, argv: Sequence[str] | None, job: Callable[[Composed], int | None]) -> int:
    """Reads the command line, does what ``--help``, ``--cfg`` or ``--multirun`` ask or the job; gives the exit code."""
    request = _read(script, list(sys.argv[1:] if argv is None else argv))
    if request.flags.help:
        from xsalt_cli.help import show_help

        chosen = {kind: _names(text) for kind, text in request.chosen.items()}
        if chosen or request.flags.user_dir:
            load_plugins(_user_dirs(request))
        show_help(script, parser(script), chosen)
        return 0
    if request.flags.multirun:
        if request.flags.cfg:
            raise UserError("--cfg shows one configuration: leave out --multirun")
        from xsalt_cli.sweep import sweep

        return sweep(script, request, job)
    composed = _compose(script, request)
    if request.flags.cfg:
        print(to_yaml(composed.resolved), end="")
        return 0
    return job(composed) or 0


def compose(script: Script, argv: Sequence[str]) -> Composed:
    """The checked configuration of a command line.

    Raises:
        UserError: one line that names the key, component or file.
    """
    return _compose(script, _read(script, list(argv)))


def _user_dirs(request: Request) -> tuple[Path, ...]:
    return tuple(Path(folder) for folder in request.flags.user_dir)


def _read(script: Script, argv: list[str]) -> Request:
    """Splits the command line. A later spelling of a key wins over an earlier one, flags over overrides."""
    known = parser(script)
    flags, rest = known.parse_known_args(argv)
    request = Request(flags)
    if flags.help:
        rest = [word for word in rest if _ASSIGNMENT.match(word)]
    elif len(rest) < len(script.positional):
        raise UserError(f"{script.positional[len(rest)]} is missing, for instance: {script.example}")
    else:
        request.positional = dict(zip(script.positional, rest, strict=False))
        rest = rest[len(script.positional) :]
    for word in rest:
        if word.startswith("-"):
            options = [
                option[2:] for action in known._actions for option in action.option_strings if option[:2] == "--"
            ]
            hint = did_you_mean(word.lstrip("-").partition("=")[0], options)
            raise UserError(f"unknown option {word}: {hint}known: --{', --'.join(options)}; all else is key=value")
        if not _ASSIGNMENT.match(word):
            raise UserError(f"{word!r} is not key=value, for instance: {script.example}")
        name, _, value = word.partition("=")
        if name.partition(".")[0].partition("/")[0] == "hydra":
            request.hydra.append(word)
        elif name in KINDS:
            request.chosen[name] = value
        else:
            request.overrides[name] = value
    request.chosen.update({kind: getattr(flags, kind) for kind in KINDS if getattr(flags, kind) is not None})
    if request.hydra and not flags.multirun:
        raise UserError(f"{request.hydra[0]}: keys of Hydra itself need --multirun")
    for word in request.hydra:
        if not _HYDRA.match(word) or "_target_" in word:
            raise UserError(f"{word}: of Hydra's own keys only launcher and sweeper can be set, by name and settings")
    return request


def split_list(text: str) -> list[str]:
    """``[a,b]`` or ``a,b`` in its parts, not split inside quotes and brackets. ``ValueError`` if a bracket is open."""
    parts, depth, quote, closed = [""], 0, "", False
    for letter in text.strip():
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not quote and depth == 0:
            parts.append("")
            closed = True
        else:
            parts[-1] += letter
    if depth:
        raise ValueError("a bracket is missing")
    if not closed and text.strip()[:1] == "[" and text.strip()[-1:] == "]":
        return split_list(text.strip()[1:-1])
    return [part.strip() for part in parts if part.strip()]


def _names(text: str) -> list[str]:
    """Component names in a value as they stand, lists of lists included (a sweep over lists)."""
    names = []
    try:
        parts = split_list(text)
    except ValueError as error:
        raise UserError(f"{text}: {error}, write [A,B]") from error
    for part in parts:
        names += _names(part) if part.startswith("[") else [part.strip("'\"")]
    return names


def _select(script: Script, request: Request, base: Mapping[str, Any]) -> dict[str, list[str]]:
    """Kind -> names of the components that the run, or any job of a sweep, has. ``none`` is no augmenter."""
    model = base.get("model", {}).get("name", "auto")
    found = {
        "task": list(base.get("task", [script.task] if script.task else [])),
        "model": [model],
        "criterion": list(base.get("criterion", ["cross_entropy"])),
        "augmenter": list(base.get("augmenter", [])),
    }
    for kind, text in request.chosen.items():
        given = _names(text)
        names = list(dict.fromkeys(given))
        twice = next((name for name in names if given.count(name) > 1), None)
        if not request.flags.multirun and twice is not None:
            raise UserError(f"{kind}={text}: {twice} stands twice, and a run has it once")
        found[kind] = [name for name in names if kind != "augmenter" or name != "none"]
        if not request.flags.multirun and (len(names) != len(found[kind]) and len(names) > 1):
            raise UserError("augmenter: 'none' stands alone, leave it out of the list")
        if not request.flags.multirun and kind not in LISTED and len(names) > 1:
            raise UserError(f"{kind}={text}: one name, a comma list needs --multirun")
    for kind in ("task", "criterion"):
        if not found[kind]:
            raise UserError(f"no {kind}: choose one by --{kind} NAME, known: {', '.join(REGISTRIES[kind].names())}")
    return found


def prepare(script: Script, request: Request) -> list[str]:
    """Imports the chosen components, stores their dataclasses as Hydra's nodes; gives the overrides in its grammar."""
    load_plugins(_user_dirs(request))
    base = script.base(request.positional) if script.base else {}
    if base:
        _check_stored(base, request)
    selected = _select(script, request, base)
    keys = train_keys() | ({entry.name: entry for entry in document(script.extra)} if script.extra else {})
    sections: dict[str, Any] = defaults(TrainConfig) | (defaults(script.extra) if script.extra else {})
    nodes: dict[tuple[str, str], dict[str, Any]] = {}
    for kind, names in selected.items():
        for name in names:
            config = component_class(REGISTRIES[kind], name).Config
            node = f"{kind}.{name}" if kind != "model" else kind
            keys |= {entry.name: entry for entry in document(config, f"{node}.")}
            nodes[kind, name] = defaults(config)
            given = base.get(kind, {}) if kind == "model" else base.get(kind, {}).get(name, {})
            nodes[kind, name].update(given)
    keys.pop("model.name", None)
    _overlay(sections, base)
    for name in list(request.overrides):
        check_key(name, keys, selected)
        if keys.get(name) and keys[name].is_dict and name.partition(".")[0] in KINDS:
            _preset(nodes, name, f"{name}={{}}")  # a whole mapping takes the place of the stored one
        if request.flags.multirun and name.partition(".")[0] in KINDS and "," not in request.overrides[name]:
            # In a sweep not every job has every component, so one value for all jobs belongs into the component's node.
            _preset(nodes, name, spell(name, request.overrides.pop(name), _lookup(name, keys)))
    multirun = request.flags.multirun
    store_nodes(sections, nodes)
    chosen = {kind: ",".join(names) for kind, names in selected.items()} | (request.chosen if multirun else {})
    chosen["augmenter"] = chosen["augmenter"] or "none"
    spelt = [f"{kind}={_bracketed(text) if kind in LISTED and not multirun else text}" for kind, text in chosen.items()]
    for name, value in request.overrides.items():
        spelt.append(spell(name, value, _lookup(name, keys), multirun))
    return spelt


def _check_stored(base: Mapping[str, Any], request: Request) -> None:
    """Checks every key of a stored configuration before Hydra sees one: a key of Hydra's own could call anything."""
    try:
        Composed.of(base)
    except UserError as error:
        raise UserError(f"{' '.join(request.positional.values())}: its stored configuration: {error}") from error


def _bracketed(text: str) -> str:
    return text if text.startswith("[") else f"[{text}]"


def _overlay(sections: dict[str, Any], base: Mapping[str, Any]) -> None:
    for name, value in base.items():
        if isinstance(value, Mapping) and isinstance(sections.get(name), dict):
            _overlay(sections[name], value)
        elif name not in KINDS:
            sections[name] = value


def _lookup(name: str, keys: Mapping[str, Key]) -> Key:
    """The key of that name, or the mapping that it lies in."""
    while name not in keys:
        name = name.rpartition(".")[0]
    return keys[name]


def check_key(name: str, keys: Mapping[str, Key], selected: Mapping[str, Sequence[str]]) -> None:
    """Raises ``UserError`` unless the name is a key of the run, naming the nearest one."""
    if name in keys or any(key.is_dict and name.startswith(f"{key.name}.") for key in keys.values()):
        return
    if name.startswith(("~", "+")):
        raise UserError(f"{name}: keys are neither added nor removed, write {name.lstrip('~+')}=VALUE")
    inside = [key for key in keys if key.startswith(f"{name}.")]
    if inside:
        raise UserError(f"{name!r} is a section: set its keys, {', '.join(inside)}")
    kind, _, rest = name.partition(".")
    component = rest.partition(".")[0]
    if name == "model.name":
        raise UserError(f"model.name: choose the model by --model, known: {', '.join(REGISTRIES['model'].names())}")
    if kind in selected and kind != "model" and component not in selected[kind]:
        REGISTRIES[kind].get(component)
        raise UserError(f"{name}: {kind} {component!r} is not part of this run, add --{kind} {component}")
    raise unknown_key(name, keys)


def spell(name: str, value: str, entry: Key, multirun: bool = False) -> str:
    """``key=value`` in Hydra's grammar: lists in brackets, and quotes around what the grammar rejects or would split.

    Under ``--multirun`` a comma sweeps, so nothing is bracketed there.
    """
    prefix = "++" if entry.is_dict else ""  # a mapping has keys that its default has not
    text = f"{prefix}{name}={value}"
    simple = "," not in value or value[:1] in "[{'\"" or "${" in value
    if multirun:
        return text if not _rejected(text, multirun) else f"{prefix}{name}={quoted(value)}"
    if entry.is_list and value != "null" and (value[:1] not in "['\"" or _rejected(text)) and "${" not in value:
        try:
            parts = [part if not _rejected(f"x={part}") else quoted(part) for part in split_list(value)]
        except ValueError as error:
            raise UserError(f"{name}={value}: {error}, write {name}=[A,B]") from error
        return f"{prefix}{name}=[{','.join(parts)}]"
    if entry.is_text and (_rejected(text) or not simple):
        return f"{prefix}{name}={quoted(value)}"
    if not simple and not entry.is_dict and not entry.is_list:
        raise UserError(f"{name}={value}: one value, a comma list needs --multirun")
    if _rejected(text):
        return f"{prefix}{name}={quoted(value)}"
    return text


def quoted(value: str) -> str:
    """The value as a quoted string: a backslash escapes only where it stands before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def _rejected(text: str, multirun: bool = False) -> bool:
    """Whether Hydra's grammar rejects ``key=value``, or takes a single run's value for a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return True
    return override.is_sweep_override() and not multirun


def _preset(nodes: Mapping[tuple[str, str], dict[str, Any]], name: str, text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value: Any = OverridesParser.create().parse_override(text).value()
    kind, *path = name.split(".")
    targets = [node for (of, _), node in nodes.items() if of == kind] if kind == "model" else [nodes[kind, path.pop(0)]]
    for target in targets:
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value


def store_nodes(sections: Mapping[str, Any], nodes: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    """Puts the nodes where Hydra looks: a plug-in needs no YAML, and every default has one place."""
    from hydra.core.config_store import ConfigStore

    empty: dict[str, Any] = {kind: {} for kind in KINDS}
    store = ConfigStore.instance()
    store.store(name="keys", node={**empty, **sections})
    store.store(group="augmenter", name="none", node={}, package="augmenter")
    for (kind, name), node in nodes.items():
        values = {**node, "name": name} if kind == "model" else dict(node)
        store.store(group=kind, name=name, node=values, package=kind if kind == "model" else f"{kind}.{name}")


def _compose(script: Script, request: Request) -> Composed:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf import OmegaConf

    overrides = prepare(script, request)
    with one_line(), initialize_config_module("xsalt.conf", version_base="1.3"):
        mapping: Any = OmegaConf.to_container(hydra_compose("train", overrides), resolve=True)
    return finish(script, request, mapping)


def finish(script: Script, request: Request, mapping: Mapping[str, Any]) -> Composed:
    """The composed mapping, checked."""
    own = {f.name for f in dataclasses.fields(script.extra)} if script.extra else set()
    composed = Composed.of({k: v for k, v in mapping.items() if k not in own}, _user_dirs(request))
    extra = make(script.extra, {k: mapping[k] for k in own}, "") if script.extra else None
    return dataclasses.replace(composed, positional=request.positional, extra=extra)


@contextmanager
def one_line() -> Iterator[None]:
    """Turns the errors of Hydra and OmegaConf inside its block into a ``UserError``."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError("; ".join(lines) or type(error).__name__) from error


def job_run(composed: Composed) -> Composed:
    """Under ``--multirun`` the run folder given is the parent of the jobs' own."""
    return composed.with_changes(run=str(Path(composed.train.run or "runs") / run_name(composed)))
