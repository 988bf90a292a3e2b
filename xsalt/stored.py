"""Configurations as text: the ``config.yaml`` of a run, which may come from anyone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xsalt.errors import UserError
from xsalt.fields import plain
from xsalt.files import read_bytes

MOST_YAML, MOST_DEEP = 1 << 18, 50
"""Bytes and depth of a stored configuration: many times what a run writes."""


def to_yaml(resolved: Mapping[str, Any]) -> str:
    """A resolved configuration as the text of ``config.yaml``, in its own order."""
    import yaml

    return str(yaml.safe_dump(plain(resolved), sort_keys=False, allow_unicode=True))


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a ``config.yaml``, of plain values alone; ``Composed.of`` checks its keys.

    Nothing in it is looked up or built: tags, aliases (which may stand for more than memory holds) and interpolations
    such as ``${oc.env:NAME}`` are refused.

    Raises:
        UserError: naming the file.
    """
    import yaml

    opens = (
        yaml.FlowSequenceStartToken,
        yaml.FlowMappingStartToken,
        yaml.BlockSequenceStartToken,
        yaml.BlockMappingStartToken,
    )
    closes = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
    try:
        text = read_bytes(file, MOST_YAML).decode("utf-8")
        depth = 0
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            depth += isinstance(token, opens) - isinstance(token, closes)
            if depth > MOST_DEEP:  # with the square of which the time grows
                raise ValueError("nested too deeply")
            if isinstance(token, (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)):
                line = token.start_mark.line + 1
                raise UserError(f"{file}:{line}: a YAML anchor, alias or tag, which no stored configuration has")
        _check_names(yaml.compose(text, Loader=yaml.SafeLoader))
        mapping = yaml.safe_load(text)
        if not isinstance(mapping, dict):
            raise UserError(f"{file}: no configuration in it")
        _check_plain(mapping)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8: {error.reason} at byte {error.start}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and long numbers are ValueErrors
        raise UserError(f"{file}: not a configuration in YAML: {' '.join(str(error).split())[:200]}") from error
    return mapping


def _check_names(node: Any) -> None:
    """Raises ``ValueError`` for a key that stands twice, of which YAML would take the last. ``node``: PyYAML's."""
    for pair in node.value if node is not None and not isinstance(node.value, str) else ():
        for part in pair if isinstance(pair, tuple) else (pair,):
            _check_names(part)
    if node is not None and node.id == "mapping":
        names = [str(key.value) for key, _ in node.value]
        if len(set(names)) < len(names):
            raise ValueError(f"the key {max(names, key=names.count)[:40]!r} stands twice")


def _check_plain(value: Any) -> None:
    """Raises ``ValueError`` for values that no resolved configuration holds."""
    if isinstance(value, dict):
        for name, of_name in value.items():
            if not isinstance(name, str):
                raise ValueError(f"the key {name!r} is no text")
            _check_plain(of_name)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item)
    elif isinstance(value, str):
        if "${" in value:
            raise ValueError(f"{value[:60]!r} is an interpolation; a stored configuration has values")
    elif not isinstance(value, (int, float, type(None))):
        raise ValueError(f"a {type(value).__name__} is no value of a configuration")
